"""The diffusion models, in pixels and in latents, as an experiment asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from common.errors import InputError
from common.settings import from_dict, to_dict
from diffusion.settings import DiffusionConfig, DiffusionSettings, check_config
from generators.interface import GeneratorBackend, SampleRequest, TrainRequest, refuse_unused

TINY: Mapping[str, Any] = {
    "channels": [8, 16],
    "n_res_blocks": 1,
    "batch_size": 4,
    "n_snapshots": 2,
    "n_evaluations": 4,
}


class DenoisingDiffusion(GeneratorBackend):
    """A diffusion model in pixels, in the shape of nnU-Net's plan."""

    name = "ddpm"
    shared_type = DiffusionSettings
    tiny_settings = TINY

    def check(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete the settings with the defaults of ``DiffusionConfig``; ``auto`` stays."""
        try:
            config = from_dict(DiffusionConfig, settings, "generator.settings")
        except TypeError as error:
            fix = "use the keys of diffusion.settings.DiffusionConfig"
            raise InputError(str(error), where="generator.settings", fix=fix) from error
        check_config(config)
        self._check_autoencoder(config)
        return to_dict(config)

    def _check_autoencoder(self, config: DiffusionConfig) -> None:
        if config.autoencoder is not None:
            problem, fix = "a model in pixels has no autoencoder, and one is given", "use null, or generator=ldm"
            raise InputError(problem, where="generator.settings.autoencoder", fix=fix)

    def train(self, request: TrainRequest) -> Mapping[str, Any]:
        """Derive everything from the plan, the data and the machine, then train."""
        import torch

        from diffusion.data import ImageData
        from diffusion.planning import derive_settings, machine_of
        from diffusion.training_run import n_processes_for, train

        refuse_unused(request, self, ("masks",))
        config = from_dict(DiffusionConfig, request.settings)
        images, masks, n_mask_labels = request.images, request.masks, 0
        if config.with_labels != (masks is not None):
            there = "no label maps" if masks is None else "label maps"
            problem = f"with_labels is {config.with_labels}, and the request holds {there}"
            fix = "leave it false outside an experiment with run_nnunet.py"
            raise InputError(problem, where="generator.settings.with_labels", fix=fix)
        if masks is not None:
            n_mask_labels = request.n_mask_labels or int(masks.max(initial=0))
        machine = machine_of(request.out, request.device)
        n_images, n_channels = images.shape[:2]
        derived = derive_settings(request.plan, n_images, n_channels, request.kimg, config, machine, n_mask_labels)
        data = ImageData(images, derived, request.seed, masks)
        n_gpus = torch.cuda.device_count() if request.device == "cuda" else 0  # cuda:1 is that one alone
        n_processes = n_processes_for(derived, n_gpus)
        train(
            data,
            request.out,
            derived,
            request.seed,
            request.device,
            request.progress,
            request.monitor,
            n_processes,
        )
        return to_dict(derived)

    def sample(self, request: SampleRequest) -> np.ndarray:
        """Sample the averaged denoiser with the sampler of its settings."""
        from diffusion.sample import sample

        checkpoint = request.trained / "generator.safetensors"
        return sample(checkpoint, request.seeds, request.batch_size, request.device, request.progress)

    def sample_with_masks(self, request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
        """As ``sample``, with the label maps that were denoised beside each image."""
        from diffusion.sample import sample_with_labels

        checkpoint = request.trained / "generator.safetensors"
        images, masks = sample_with_labels(
            checkpoint, request.seeds, request.batch_size, request.device, request.progress
        )
        if masks is None:
            fix = "train it with generator.settings.with_labels=true"
            raise InputError("the model makes no masks", where=checkpoint, fix=fix)
        return images, masks

    def makes_masks(self, settings: Mapping[str, Any]) -> bool:
        """The ``with_labels`` setting."""
        return bool(settings["with_labels"])

    def sees_mirrored(self, settings: Mapping[str, Any]) -> bool:
        """The ``mirror`` setting."""
        return bool(settings["mirror"])

    def monitor_share(self) -> float:
        """As ``diffusion.schedule`` plans it."""
        from diffusion.schedule import SHARE_OF_TIME

        return SHARE_OF_TIME


class LatentDiffusion(DenoisingDiffusion):
    """A diffusion model in the latents of an autoencoder, both in the shape of nnU-Net's plan."""

    name = "ldm"
    tiny_settings: Mapping[str, Any] = {**TINY, "autoencoder": {"channels": [8, 16]}}

    def _check_autoencoder(self, config: DiffusionConfig) -> None:
        if config.autoencoder is None:
            problem, fix = "a model in latents needs an autoencoder, and none is given", "use generator=ldm"
            raise InputError(problem, where="generator.settings.autoencoder", fix=fix)
