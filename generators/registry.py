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
from common.plan import Plan
from common.progress import Progress
from common.settings import from_dict, to_dict
from training.monitor import Monitor

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
        monitor: Monitor | None = None,
        labels: np.ndarray | None = None,
        n_labels: int | None = None,
    ) -> Mapping[str, Any]:
        """Train on (n, channels, height, width) integers, resuming in ``out``; returns the resolved settings.

        Args:
            monitor: scores samples along the way; a generator without snapshots may ignore it.
            labels: ids (n, height, width), 0 for background; given if ``generates_labels``, and only then.
            n_labels: the dataset's foreground labels, of which a site may lack some; None: the largest of ``labels``.
        """

    def sees_mirrored(self, settings: Mapping[str, Any]) -> bool:
        """Whether training images are also shown mirrored."""

    def generates_labels(self, settings: Mapping[str, Any]) -> bool:
        """Whether it is trained on label maps too and makes one with each image."""

    def sample(
        self, trained: Path, seeds: Sequence[int], batch_size: int | None, device: str, progress: Progress
    ) -> np.ndarray:
        """One image per seed, (n, channels, height, width), in the type of the training images.

        ``batch_size``: images in a forward pass; None: the generator's own choice. For one choice an image is the same
        to the last bit whatever other seeds there are.
        """

    def sample_with_labels(
        self, trained: Path, seeds: Sequence[int], batch_size: int | None, device: str, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images of ``sample`` and their label ids (n, height, width) uint8; only where it generates labels."""


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
        monitor: Monitor | None = None,
        labels: np.ndarray | None = None,
        n_labels: int | None = None,
    ) -> Mapping[str, Any]:
        """Derive everything from the plan and the data, then train: ``cuda`` is all GPUs that can be seen."""
        import torch

        from gan.auto import resolve
        from gan.train import n_processes_for, train

        if labels is not None:
            raise ValueError("StyleGAN2 generates no labels")
        derived = resolve(settings, kimg, plan, len(images), images.shape[1], out, device)
        n_gpus = torch.cuda.device_count() if device == "cuda" else 0  # cuda:1 is that one alone
        n_processes = n_processes_for(derived, n_gpus)
        if n_gpus:
            log.info("training on %d of %d GPUs", n_processes, n_gpus)
        train(images, out, derived, seed, device, progress, monitor, n_processes)
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

    def generates_labels(self, settings: Mapping[str, Any]) -> bool:
        """Never."""
        return False

    def sample_with_labels(
        self, trained: Path, seeds: Sequence[int], batch_size: int | None, device: str, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray]:
        """There are none."""
        raise ValueError("StyleGAN2 generates no labels")


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
        monitor: Monitor | None = None,
        labels: np.ndarray | None = None,
        n_labels: int | None = None,
    ) -> Mapping[str, Any]:
        """Derive everything from the plan, the data and the machine, then train: ``cuda`` is all GPUs to be seen."""
        import torch

        from diffusion.data import ImageData
        from diffusion.planning import derive_on
        from diffusion.settings import DiffusionConfig
        from diffusion.train import n_processes_for, train

        config = from_dict(DiffusionConfig, settings)
        if config.with_labels != (labels is not None):
            problem = f"{config.with_labels}, and {'no' if labels is None else 'some'} label maps to learn from"
            where, fix = "generator.settings.with_labels", "leave it false outside an experiment with run_nnunet.py"
            raise InputError(problem, where=where, fix=fix)
        if labels is not None and n_labels is None:
            n_labels = int(labels.max(initial=0))
        derived = derive_on(out, device, plan, len(images), images.shape[1], kimg, config, n_labels or 0)
        n_gpus = torch.cuda.device_count() if device == "cuda" else 0  # cuda:1 is that one alone
        n_processes = n_processes_for(derived, n_gpus)
        train(ImageData(images, derived, seed, labels), out, derived, seed, device, progress, monitor, n_processes)
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

    def generates_labels(self, settings: Mapping[str, Any]) -> bool:
        """The ``with_labels`` setting."""
        return bool(settings["with_labels"])

    def sample_with_labels(
        self, trained: Path, seeds: Sequence[int], batch_size: int | None, device: str, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``sample``, with the labels that were denoised beside each image."""
        from diffusion.sample import sample_with_labels

        checkpoint = trained / "generator.safetensors"
        images, labels = sample_with_labels(checkpoint, seeds, batch_size, device, progress)
        if labels is None:
            fix = "train it with generator.settings.with_labels=true"
            raise InputError("the model generates no labels", where=checkpoint, fix=fix)
        return images, labels


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
