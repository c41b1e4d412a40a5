"""Differential privacy of a training (DP-SGD): weights learn of real images by one noisy gradient a step alone.

Only the discriminator sees real images, and only their half of its loss (Dmain): the gradient of every unit, which is
an image or a patient, is clipped to a norm, and the sum gets Gaussian noise (Abadi et al. 2016, algorithm 1). All else
follows from weights that are already private: the fakes and their half, which needs neither clipping nor noise, the
generator, the average (DPGAN, Xie et al. 2018). Nothing else may look at real images: ``TrainStep.r2`` takes the place
of R1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.errors import InputError
from gan.accountant import epsilon_after, noise_for
from gan.secret import SecretStream
from gan.settings import AUTO, IMAGE, PATIENT, GanSettings

UNIT_TEXTS = {IMAGE: "one image, added or removed", PATIENT: "one patient with all images, added or removed"}
GRID_OF_A_CLIP = 2**24  # steps of the grid, on which sum and noise lie, in one clipping norm; float64 adds them exactly

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Population:
    """How many images a training has, and of whom."""

    n_images: int
    n_patients: int | None = None  # None: it is not known whose they are
    most_images: int | None = None  # of one patient

    @classmethod
    def of(cls, n_images: int, patients: Sequence[str] | None) -> Population:
        """``patients``: whose each image is, or None."""
        if patients is None:
            return cls(n_images)
        if len(patients) != n_images:
            raise ValueError(f"{len(patients)} patients are named for {n_images} images")
        counts = Counter(patients)
        return cls(n_images, len(counts), max(counts.values()))


@dataclass(frozen=True)
class Mechanism:
    """What is done to the real images' gradient at every step, and what that costs."""

    clip_norm: float
    noise_multiplier: float  # standard deviation of the noise on the sum of clipped gradients, in clipping norms
    sampling_rate: float  # every unit is in a step with this probability, by itself
    delta: float
    n_expected: int  # units in a step; the sum is divided by this and not by how many there were

    def epsilon_after(self, n_steps: int, n_units: int = 1) -> float:
        """What so many steps have spent, for ``n_units`` added or removed together."""
        return epsilon_after(n_steps, self.noise_multiplier, self.sampling_rate, self.delta, n_units)

    def gradient(
        self, loss: Callable[[Unit], Tensor], units: Iterable[Unit], parameters: Sequence[Tensor], noise: SecretStream
    ) -> list[Tensor]:
        """The private estimate of the gradient of the mean ``loss``, as many tensors as ``parameters``.

        Sum and noise are whole steps of a grid. Rounding Gaussian noise to the grid on which the sum lies is rounding
        their sum: it hides what the last bits of a floating-point sum would tell (Mironov 2012), and costs nothing.

        Args:
            loss: of one unit; it must not depend on any other.
            units: those of the step, any number of them.
            noise: who can repeat it can take the noise off.
        """
        summed = clipped_sum(loss, units, parameters, self.clip_norm)
        drawn = noise.gaussian(len(summed), summed.device).mul_(self.noise_multiplier * GRID_OF_A_CLIP)
        mean = summed.add_(drawn.round_()).mul_(self.clip_norm / GRID_OF_A_CLIP / self.n_expected)
        parts = mean.split([parameter.numel() for parameter in parameters])
        return [part.view(of.shape).to(of.dtype) for part, of in zip(parts, parameters, strict=True)]


def derive_mechanism(settings: GanSettings, population: Population) -> Mechanism | None:
    """The least noise with which all steps of the training spend the settings' epsilon; None without privacy.

    Raises:
        InputError: the batch is larger than the data, nobody knows whose images they are, or no noise is enough.
    """
    privacy, batch_size = settings.config.privacy, settings.config.batch_size
    if privacy is None:
        return None
    n_units = population.n_images if privacy.unit == IMAGE else population.n_patients
    if n_units is None:
        raise InputError(
            "it is not known whose the images are",
            where="generator.settings.privacy.unit",
            fix="name the patient of each image, or use generator.settings.privacy.unit=image",
        )
    if privacy.sampling_rate == AUTO and batch_size > n_units:
        raise InputError(
            f"a step of {batch_size} of {n_units} {privacy.unit}s",
            where="generator.settings.batch_size",
            fix=f"use at most {n_units} with generator.settings.privacy",
        )
    # where all are set as numbers, nothing here follows from how many units there are
    delta = 1 / (10 * n_units) if privacy.delta == AUTO else float(privacy.delta)
    rate = batch_size / n_units if privacy.sampling_rate == AUTO else float(privacy.sampling_rate)
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
    loss: Callable[[Unit], Tensor], units: Iterable[Unit], parameters: Sequence[Tensor], clip_norm: float
) -> Tensor:
    """Sum over the units of the gradient of each one's loss, scaled down to ``clip_norm`` where it is longer.

    One unit after the other: as fast here as per-sample gradients by ``torch.func`` (``python -m gan.benchmark
    --private`` has the price), in the memory of one, and with the networks as they are. A gradient that is not finite
    counts as zero, for it has no norm to bound.

    Returns:
        (numbers of all parameters,) float64, whole numbers: in steps of the grid. Each unit's are rounded towards zero,
        which makes no norm longer, and whole numbers of this size add up without rounding, so that one unit more moves
        the sum by at most ``GRID_OF_A_CLIP``.
    """
    sizes = [parameter.numel() for parameter in parameters]
    summed = torch.zeros(sum(sizes), dtype=torch.float64, device=parameters[0].device)
    gradient = torch.empty_like(summed)
    parts = [part.view(of.shape) for part, of in zip(gradient.split(sizes), parameters, strict=True)]
    for unit in units:
        torch._foreach_copy_(parts, torch.autograd.grad(loss(unit), parameters))
        norm = float(torch.linalg.vector_norm(gradient))
        if math.isfinite(norm):
            summed += gradient.mul_(GRID_OF_A_CLIP / max(norm, clip_norm)).trunc_()
    return summed


def privacy_record(settings: GanSettings, population: Population, n_steps: int) -> dict[str, Any] | None:
    """What card and checkpoint say of a training after ``n_steps``; None without differential privacy."""
    mechanism, privacy = derive_mechanism(settings, population), settings.config.privacy
    if mechanism is None or privacy is None:
        return None
    of_patient, n_together = None, 1 if privacy.unit == PATIENT else population.most_images
    if n_together is not None:
        spent = mechanism.epsilon_after(n_steps, n_together)
        of_patient = {"epsilon": spent, "most_images": population.most_images}
    return {
        "epsilon": mechanism.epsilon_after(n_steps),
        "delta": mechanism.delta,
        "unit": UNIT_TEXTS[privacy.unit],
        "patient": of_patient,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip_norm": mechanism.clip_norm,
        "sampling_rate": mechanism.sampling_rate,
        "n_steps": n_steps,
        "accountant": "RDP of the Poisson-sampled Gaussian mechanism",
    }
