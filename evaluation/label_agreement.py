"""How far two label maps of the same synthetic images agree: the generator's own and the site's network's.

Neither is a reference. A class that both maps of an image lack says nothing about that image: it is left out and
counted. Where one of them has it, Dice is 0 at worst, as in ``evaluation.segmentation``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.statistics import MIN_PATIENTS_OF_MEAN, Scores, estimate, interval, nan_mean

N_LEAST_ALIKE = 6


@dataclass(frozen=True)
class ClassAgreement:
    """One class: mean Dice with its 95 % t interval over images, None where too few images have the class.

    The shares are of all pixels of all images.
    """

    label: str
    dice: float | None
    low: float | None
    high: float | None
    n_compared: int
    n_both_empty: int
    generated_share: float
    predicted_share: float


@dataclass(frozen=True)
class Pair:
    """The two label maps of one image: their Dice as the mean over the classes that at least one of them has."""

    image: str
    dice: float


@dataclass(frozen=True)
class LabelAgreement:
    """All classes, what of the images is foreground in each map, and the pairs of least agreement, worst first."""

    n_images: int
    classes: tuple[ClassAgreement, ...]
    generated_share: float
    predicted_share: float
    least_alike: tuple[Pair, ...]


def compare_labels(
    generated: np.ndarray, predicted: np.ndarray, labels: Mapping[str, int], names: Sequence[str]
) -> LabelAgreement:
    """Compare label ids (n, height, width), class by class.

    Args:
        labels: id by name, 1 to the number of labels.
        names: of the images.

    Raises:
        ValueError: no images, or maps of different shapes.
    """
    if generated.shape != predicted.shape or not generated.size:
        raise ValueError(f"labels of shape {generated.shape} beside {predicted.shape}")
    counts = _joint_counts(generated, predicted, len(labels))
    of_generated, of_predicted = counts.sum(axis=2), counts.sum(axis=1)  # (n, ids)
    with np.errstate(invalid="ignore"):
        dice = 2 * np.diagonal(counts, axis1=1, axis2=2) / (of_generated + of_predicted)
    shares = [of_map.sum(axis=0) / generated.size for of_map in (of_generated, of_predicted)]
    return LabelAgreement(
        n_images=len(generated),
        classes=tuple(
            _of_class(name, dice[:, value], float(shares[0][value]), float(shares[1][value]))
            for name, value in labels.items()
        ),
        generated_share=float(shares[0][1:].sum()),
        predicted_share=float(shares[1][1:].sum()),
        least_alike=_least_alike(dice[:, 1:], names),
    )


def _joint_counts(generated: np.ndarray, predicted: np.ndarray, n_labels: int) -> np.ndarray:
    """Pixels of each image by both labels, (n, generated, predicted)."""
    n_ids = n_labels + 1
    counts = np.zeros((len(generated), n_ids, n_ids))
    for index, (one, other) in enumerate(zip(generated, predicted, strict=True)):
        both = one.astype(np.int64).ravel() * n_ids + other.ravel()
        counts[index] = np.bincount(both, minlength=n_ids**2).reshape(n_ids, n_ids)
    return counts


def _of_class(name: str, dice: np.ndarray, generated_share: float, predicted_share: float) -> ClassAgreement:
    compared = dice[~np.isnan(dice)]
    # generated images belong to no patient: each is drawn on its own
    index = np.arange(len(compared))
    scores = Scores(compared[:, None], patients=index, folds=np.zeros_like(index), seeds=np.zeros_like(index))
    found = interval(estimate(scores), bounds=(0, 1), min_patients=MIN_PATIENTS_OF_MEAN)
    return ClassAgreement(
        label=name,
        dice=_known(found.mean),
        low=_known(found.low),
        high=_known(found.high),
        n_compared=len(compared),
        n_both_empty=len(dice) - len(compared),
        generated_share=generated_share,
        predicted_share=predicted_share,
    )


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _least_alike(dice: np.ndarray, names: Sequence[str]) -> tuple[Pair, ...]:
    means = nan_mean(dice, axis=1)
    order = [int(index) for index in np.argsort(means, kind="stable") if not math.isnan(means[index])]
    return tuple(Pair(names[index], float(means[index])) for index in order[:N_LEAST_ALIKE])
