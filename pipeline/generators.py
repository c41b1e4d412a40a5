"""The generators an experiment can name.

A new one is a room with this interface, an entry here, one for its settings in ``sharing.schema.GENERATORS`` (packages
are checked by them) and one YAML.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.errors import InputError
from common.gauge import Gauge
from common.plan import Plan
from common.progress import Progress
from common.settings import from_dict, to_dict

log = logging.getLogger(__name__)


class Generator(Protocol):
    """What the pipeline asks of a generator; the contract test holds every registered one to it."""

    @property
    def package(self) -> str:
        """The room whose code its results depend on."""

    def check(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete and validate the settings (InputError on unknown keys or wrong types)."""

    def train(
        self,
        images: np.ndarray,
        plan: Plan,
        kimg: float | None,
        settings: Mapping[str, Any],
        out: Path,
        seed: int,
        device: str,
        progress: Progress,
        gauge: Gauge | None = None,
    ) -> Mapping[str, Any]:
        """Train on (n, channels, height, width) integers, resuming in ``out``; returns the resolved settings.

        ``gauge`` scores samples along the way; a generator without snapshots may ignore it.
        """

    def sees_mirrored(self, settings: Mapping[str, Any]) -> bool:
        """Whether training images are also shown mirrored."""

    def sample(
        self, trained: Path, seeds: Sequence[int], batch_size: int | None, device: str, progress: Progress
    ) -> np.ndarray:
        """One image per seed, (n, channels, height, width), in the type of the training images.

        ``batch_size``: images in a forward pass; None: the generator's own choice. For one choice an image is the same
        to the last bit whatever other seeds there are.
        """


@dataclass(frozen=True)
class StyleGan2:
    """The plan-shaped StyleGAN2 of ``gan/``."""

    package: str = "gan"

    def check(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete the settings with the defaults of ``GanConfig``; ``auto`` stays where ``gan.auto`` knows it."""
        from gan.auto import complete

        try:
            return complete(settings, "generator.settings")
        except TypeError as error:
            raise InputError(
                str(error), where="generator.settings", fix="use the keys of gan.settings.GanConfig"
            ) from error

    def train(
        self,
        images: np.ndarray,
        plan: Plan,
        kimg: float | None,
        settings: Mapping[str, Any],
        out: Path,
        seed: int,
        device: str,
        progress: Progress,
        gauge: Gauge | None = None,
    ) -> Mapping[str, Any]:
        """Derive everything from the plan and the data, then train: ``cuda`` is all GPUs that can be seen."""
        import torch

        from gan.auto import resolve
        from gan.parallel import n_processes_for
        from gan.train import train

        derived = resolve(settings, kimg, plan, len(images), images.shape[1], out, device)
        n_gpus = torch.cuda.device_count() if device == "cuda" else 0  # cuda:1 is that one alone
        n_processes = n_processes_for(derived, n_gpus)
        if n_gpus:
            log.info("training on %d of %d GPUs", n_processes, n_gpus)
        train(images, out, derived, seed, device, progress, gauge, n_processes)
        return to_dict(derived)

    def sees_mirrored(self, settings: Mapping[str, Any]) -> bool:
        """The ``mirror`` setting."""
        return bool(settings["mirror"])

    def sample(
        self, trained: Path, seeds: Sequence[int], batch_size: int | None, device: str, progress: Progress
    ) -> np.ndarray:
        """Sample the EMA generator."""
        from gan.sample import sample

        return sample(trained / "generator.safetensors", seeds, batch_size, device, progress)


@dataclass(frozen=True)
class Diffusion:
    """The plan-shaped diffusion models of ``diffusion/``: in pixels, or in an autoencoder's latents."""

    in_latents: bool
    package: str = "diffusion"

    def check(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete the settings with the defaults of ``DiffusionConfig``; ``auto`` stays."""
        from diffusion.settings import DiffusionConfig, check_config

        try:
            config = from_dict(DiffusionConfig, settings, "generator.settings")
        except TypeError as error:
            fix = "use the keys of diffusion.settings.DiffusionConfig"
            raise InputError(str(error), where="generator.settings", fix=fix) from error
        check_config(config)
        if (config.autoencoder is not None) != self.in_latents:
            problem, fix = ("none", "use generator=ldm") if self.in_latents else ("one", "use null, or generator=ldm")
            raise InputError(f"the model has {problem}", where="generator.settings.autoencoder", fix=fix)
        return to_dict(config)

    def train(
        self,
        images: np.ndarray,
        plan: Plan,
        kimg: float | None,
        settings: Mapping[str, Any],
        out: Path,
        seed: int,
        device: str,
        progress: Progress,
        gauge: Gauge | None = None,
    ) -> Mapping[str, Any]:
        """Derive everything from the plan, the data and the machine, then train: ``cuda`` is all GPUs to be seen."""
        import torch

        from diffusion.data import ImageData
        from diffusion.planning import derive_on
        from diffusion.settings import DiffusionConfig
        from diffusion.spatial_plan import spatial_plan_from_2d
        from diffusion.train import n_processes_for, train

        config, shape = from_dict(DiffusionConfig, settings), spatial_plan_from_2d(plan)
        derived = derive_on(out, device, shape, len(images), images.shape[1], kimg, config)
        n_gpus = torch.cuda.device_count() if device == "cuda" else 0  # cuda:1 is that one alone
        n_processes = n_processes_for(derived, n_gpus)
        train(ImageData(images, derived, seed), out, derived, seed, device, progress, gauge, n_processes)
        return to_dict(derived)

    def sees_mirrored(self, settings: Mapping[str, Any]) -> bool:
        """The ``mirror`` setting."""
        return bool(settings["mirror"])

    def sample(
        self, trained: Path, seeds: Sequence[int], batch_size: int | None, device: str, progress: Progress
    ) -> np.ndarray:
        """Sample the averaged denoiser with the sampler of its settings."""
        from diffusion.sample import sample

        return sample(trained / "generator.safetensors", seeds, batch_size, device, progress)


GENERATORS: Mapping[str, Generator] = {
    "stylegan2": StyleGan2(),
    "ddpm": Diffusion(in_latents=False),
    "ldm": Diffusion(in_latents=True),
}


def find_generator(name: str) -> Generator:
    """The generator called ``name``.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name not in GENERATORS:
        raise InputError(f"no generator {name!r}", where="generator.name", fix=f"use one of {sorted(GENERATORS)}")
    return GENERATORS[name]
