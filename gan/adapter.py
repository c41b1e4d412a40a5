"""StyleGAN2 as an experiment asks for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.errors import InputError
from common.settings import to_dict
from gan.auto import complete, resolve
from gan.schedule import SHARE_OF_TIME
from gan.settings import GanSettings
from generators.interface import GeneratorBackend, SampleRequest, TrainRequest, refuse_unused

log = logging.getLogger(__name__)


class StyleGan2(GeneratorBackend):
    """StyleGAN2 in the shape of nnU-Net's plan."""

    name = "stylegan2"
    shared_type = GanSettings
    tiny_settings: Mapping[str, Any] = {"channel_base": 128, "channel_max": 8, "z_dim": 8, "w_dim": 8, "batch_size": 4}

    def check(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete the settings with the defaults of ``GanConfig``; ``auto`` stays where ``gan.auto`` knows it."""
        try:
            return complete(settings, "generator.settings")
        except TypeError as error:
            fix = "use the keys of gan.settings.GanConfig"
            raise InputError(str(error), where="generator.settings", fix=fix) from error

    def train(self, request: TrainRequest) -> Mapping[str, Any]:
        """Derive everything from the plan and the data, then train."""
        import torch

        from gan.train import n_processes_for, train

        refuse_unused(request, self)
        derived = resolve(
            request.settings,
            request.kimg,
            request.plan,
            len(request.images),
            request.images.shape[1],
            request.out,
            request.device,
        )
        n_gpus = torch.cuda.device_count() if request.device == "cuda" else 0  # cuda:1 is that one alone
        n_processes = n_processes_for(derived, n_gpus)
        if n_gpus:
            log.info("training on %d of %d GPUs", n_processes, n_gpus)
        train(
            request.images,
            request.out,
            derived,
            request.seed,
            request.device,
            request.progress,
            request.monitor,
            n_processes,
            request.patients,
        )
        return to_dict(derived)

    def sample(self, request: SampleRequest) -> np.ndarray:
        """Sample the averaged generator."""
        from gan.sample import sample

        checkpoint = request.trained / "generator.safetensors"
        return sample(checkpoint, request.seeds, request.batch_size, request.device, request.progress)

    def sees_mirrored(self, settings: Mapping[str, Any]) -> bool:
        """The ``mirror`` setting."""
        return bool(settings["mirror"])

    def monitor_share(self) -> float:
        """As ``gan.schedule`` plans it."""
        return SHARE_OF_TIME
