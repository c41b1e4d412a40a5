"""Differential privacy of a training (DP-SGD): weights learn of real images by one noisy gradient a step alone.

Only the discriminator sees real images, and only their half of its loss (Dmain): the gradient of every real image is
clipped to a norm, the sum gets Gaussian noise (Abadi et al. 2016, algorithm 1). All else follows from weights that are
already private: the fakes and their half, which needs neither clipping nor noise, the generator, the average (DPGAN,
Xie et al. 2018). Nothing else may look at real images: ``TrainStep.r2`` takes the place of R1.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from gan.accountant import epsilon_after, noise_for
from gan.settings import AUTO, GanSettings

UNIT = "one image, added or removed"
SECRET_BITS = 128


@dataclass(frozen=True)
class Mechanism:
    """What is done to the real images' gradient at every step, and what that costs."""

    clip_norm: float
    noise_multiplier: float  # standard deviation of the noise on the sum of clipped gradients, in clipping norms
    sampling_rate: float  # every image is in a step with this probability, by itself
    delta: float
    n_expected: int  # images in a step; the sum is divided by this and not by how many there were

    def epsilon_after(self, n_steps: int) -> float:
        """What so many steps have spent."""
        return epsilon_after(n_steps, self.noise_multiplier, self.sampling_rate, self.delta)

    def gradient(
        self,
        loss: Callable[[Tensor], Tensor],
        images: Tensor,
        parameters: Sequence[Tensor],
        draws: torch.Generator,
    ) -> list[Tensor]:
        """The private estimate of the gradient of the mean ``loss`` of a batch, as many tensors as ``parameters``.

        Args:
            loss: of a batch of one image.
            images: those of the step, any number of them.
            draws: on the parameters' device; who knows its seed can take the noise off.
        """
        summed = clipped_sum(loss, images, parameters, self.clip_norm)
        deviation = self.noise_multiplier * self.clip_norm
        for total in summed:
            noise = torch.randn(total.shape, generator=draws, device=total.device, dtype=total.dtype)
            total.add_(noise, alpha=deviation).div_(self.n_expected)
        return summed


def derive_mechanism(settings: GanSettings, n_images: int) -> Mechanism | None:
    """The least noise with which all steps of the training spend the settings' epsilon; None without privacy.

    Raises:
        InputError: the batch is larger than the data, or no noise is enough.
    """
    privacy, batch_size = settings.config.privacy, settings.config.batch_size
    if privacy is None:
        return None
    if batch_size > n_images:
        raise InputError(
            f"a step of {batch_size} of {n_images} images",
            where="generator.settings.batch_size",
            fix=f"use at most {n_images} with generator.settings.privacy",
        )
    delta = 1 / (10 * n_images) if privacy.delta == AUTO else float(privacy.delta)
    rate = batch_size / n_images
    try:
        noise_multiplier = noise_for(privacy.epsilon, delta, rate, settings.n_steps)
    except ValueError as error:
        raise InputError(
            str(error),
            where="generator.settings.privacy",
            fix="raise epsilon or delta, or lower train.gan.kimg",
        ) from error
    return Mechanism(privacy.clip_norm, noise_multiplier, rate, delta, batch_size)


def clipped_sum(
    loss: Callable[[Tensor], Tensor], images: Tensor, parameters: Sequence[Tensor], clip_norm: float
) -> list[Tensor]:
    """Sum over the images of the gradient of each one's loss, scaled down to ``clip_norm`` where it is longer.

    One image after the other: as fast here as per-sample gradients by ``torch.func`` (``python -m gan.benchmark
    --private`` has the price), in the memory of one, and with the networks as they are. A gradient that is not finite
    counts as zero, for it has no norm to bound.
    """
    summed = [torch.zeros_like(parameter) for parameter in parameters]
    for image in images:
        gradients = torch.autograd.grad(loss(image[None]), parameters)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = torch.where(norm.isfinite(), clip_norm / norm.clamp_min(clip_norm), 0.0)
        for total, gradient in zip(summed, gradients, strict=True):
            total.add_(gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) * scale)
    return summed


def new_secret() -> str:
    """A number that nobody can guess: noise and sampling are drawn from it, and who knows it can remove the noise.

    It is kept in the checkpoint, so that a resumed training draws the same, and is gone with it.
    """
    return f"{secrets.randbits(SECRET_BITS):032x}"


def privacy_record(settings: GanSettings, n_images: int, n_steps: int) -> dict[str, Any] | None:
    """What card and checkpoint say of a training after ``n_steps``; None without differential privacy."""
    mechanism = derive_mechanism(settings, n_images)
    if mechanism is None:
        return None
    return {
        "epsilon": mechanism.epsilon_after(n_steps),
        "delta": mechanism.delta,
        "unit": UNIT,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip_norm": mechanism.clip_norm,
        "sampling_rate": mechanism.sampling_rate,
        "n_steps": n_steps,
        "accountant": "RDP of the Poisson-sampled Gaussian mechanism",
    }
