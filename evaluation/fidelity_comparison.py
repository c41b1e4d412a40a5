"""Which of two sets of images is nearer to images of strangers, in equal numbers and against the same resamples.

The Fréchet distance falls as images are added, so that the larger set is cut into parts as large as the smaller one and
their mean distance counts. What is resampled is shared: both sets meet the same strangers, so that the interval of the
ratio is that of a comparison and not of two distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.bootstrap import drawn_counts, percentile_interval
from common.seeds import derive_seed
from evaluation.fidelity import N_RESAMPLES, Estimate, frechet_distance


@dataclass(frozen=True, eq=False)
class Sides:
    """Features (n, d): two sets, and the images both are compared with, each of the patient that ``owners`` names."""

    a: np.ndarray
    b: np.ndarray
    references: np.ndarray
    owners: Sequence[str]


@dataclass(frozen=True)
class FrechetComparison:
    """Distances of both sets to the references, that of ``a`` over that of ``b``, and how many images each is of."""

    a: Estimate
    b: Estimate
    ratio: Estimate
    n_images: int


def compare_frechet(
    groups: Sequence[Sides], seed: int, *, is_paired: bool = False, n_resamples: int = N_RESAMPLES
) -> FrechetComparison:
    """Means over ``groups`` (outer folds, usually one) with bootstrap intervals, images and patients resampled.

    Args:
        is_paired: the i-th images of both sets belong together (one seed) and are drawn together.
    """
    resampled = [_resampled(group, derive_seed(seed, i), is_paired, n_resamples) for i, group in enumerate(groups)]
    values = np.mean([found[0] for found in resampled], axis=0)
    drawn = np.mean([found[1] for found in resampled], axis=0)
    low, high = percentile_interval(np.log(drawn[:, 0] / drawn[:, 1]), float(np.log(values[0] / values[1])))
    ratios = drawn[:, 0] / drawn[:, 1]
    ratio = Estimate(float(values[0] / values[1]), float(ratios.std(ddof=1)), float(np.exp(low)), float(np.exp(high)))
    a, b = (_estimate(value, column) for value, column in zip(values, drawn.T, strict=True))
    return FrechetComparison(a, b, ratio, min(min(len(group.a), len(group.b)) for group in groups))


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    """Shifted to the estimate: the repeats in a resample raise the distance."""
    return Estimate(float(value), float(resampled.std(ddof=1)), *percentile_interval(resampled, float(value)))


def _resampled(group: Sides, seed: int, is_paired: bool, n_resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """The distances of both sets (2,), and of their resamples (n_resamples, 2)."""
    n_images = min(len(group.a), len(group.b))
    sides = [_parts(side, n_images) for side in (group.a, group.b)]
    names, owner = np.unique(np.asarray(group.owners), return_inverse=True)
    rng = np.random.default_rng(seed)
    values = [_mean_distance(parts, group.references) for parts in sides]
    drawn = np.empty((n_resamples, 2))
    for row, patients in zip(drawn, drawn_counts(len(names), n_resamples, rng)[:, owner], strict=True):
        references = np.repeat(group.references, patients, axis=0)
        shared = drawn_counts(n_images, 1, rng)[0]
        for column, parts in enumerate(sides):
            counts = [shared if is_paired else drawn_counts(n_images, 1, rng)[0] for _ in parts]
            row[column] = _mean_distance(
                [np.repeat(part, n, axis=0) for part, n in zip(parts, counts, strict=True)], references
            )
    return np.array(values), drawn


def _parts(features: np.ndarray, n_images: int) -> list[np.ndarray]:
    """As many disjoint parts of ``n_images`` as there are; what is left over is left out."""
    return [features[start : start + n_images] for start in range(0, len(features) - n_images + 1, n_images)]


def _mean_distance(parts: Sequence[np.ndarray], references: np.ndarray) -> float:
    return float(np.mean([frechet_distance(part, references) for part in parts]))
