"""What the measures of leakage look at, and the form their values come back in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError

CANDIDATES = 8  # neighbours asked for where one counts: the search rounds to single precision, their order does not


@dataclass(frozen=True, eq=False)
class Evidence:
    """Features of three sets of images, in an order that does not depend on the order they came in.

    Args:
        train: (n, d) of the images the generator was trained on; ``train_patients``: one name each.
        heldout: (h, d) of real images of other patients; ``heldout_patients``: one name each.
        generated: (m, d).
        seed: of every resampling.
        train_logits: (n,) and ``heldout_logits`` (h,) of the discriminator, where it is to be attacked too.

    Features are unit vectors, or of that order: ``features.index`` takes smaller squared distances than 1e-9 for 0.

    Raises:
        InputError: features that are no numbers or of different dimensions, fewer than two images or patients in a set,
            or a patient on both sides.
    """

    train: np.ndarray
    train_patients: Sequence[str]
    heldout: np.ndarray
    heldout_patients: Sequence[str]
    generated: np.ndarray
    seed: int = 0
    train_logits: np.ndarray | None = None
    heldout_logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check(self)
        for side in ("train", "heldout", "generated"):
            features, patients = getattr(self, side), getattr(self, f"{side}_patients", None)
            logits = getattr(self, f"{side}_logits", None)
            order = _order(features, patients, logits)
            object.__setattr__(self, side, np.asarray(features)[order])
            if patients is not None:
                object.__setattr__(self, f"{side}_patients", tuple(str(patients[i]) for i in order))
            if logits is not None:
                object.__setattr__(self, f"{side}_logits", np.asarray(logits, np.float64)[order])


@dataclass(frozen=True)
class MetricResult:
    """A measured value with its 95 % interval.

    ``interval`` says how the interval was made, ``baseline`` is what an honest generator gives on the same images and
    ``p`` the probability of a value at least as extreme under ``test``; NaN where there is none.
    """

    value: float
    low: float
    high: float
    interval: str
    baseline: float = math.nan
    p: float = math.nan
    test: str = ""


def _check(evidence: Evidence) -> None:
    sides = {side: np.asarray(getattr(evidence, side)) for side in ("train", "heldout", "generated")}
    for side, features in sides.items():
        if features.ndim != 2 or features.shape[1:] != sides["train"].shape[1:] or len(features) < 2:
            raise _refusal(f"{side} features of shape {features.shape}", "give (images, features), two images or more")
        if not np.isfinite(features).all():
            raise _refusal(f"{side} features hold NaN or infinity", "drop images that cannot be embedded")
    for side in ("train", "heldout"):
        patients, logits = getattr(evidence, f"{side}_patients"), getattr(evidence, f"{side}_logits")
        if len(patients) != len(sides[side]) or len(set(patients)) < 2:
            raise _refusal(
                f"{len(set(patients))} {side} patients for {len(sides[side])} images", "name each image's, at least two"
            )
        if logits is not None and np.shape(logits) != (len(patients),):
            raise _refusal(f"{side} logits of shape {np.shape(logits)}", "give one number an image")
    shared = set(evidence.train_patients) & set(evidence.heldout_patients)
    if shared:
        raise _refusal(f"{len(shared)} patients are trained on and held out", "hold out whole patients")
    if (evidence.train_logits is None) != (evidence.heldout_logits is None):
        raise _refusal("logits of one side only", "give those of training and held-out images, or neither")


def _refusal(problem: str, fix: str) -> InputError:
    return InputError(problem, where="leakage", fix=fix)


def _order(features: np.ndarray, patients: Sequence[str] | None, logits: np.ndarray | None) -> list[int]:
    """By patient, then by the features' bytes, so that seeded draws take the same images in any stored order."""
    keys = [
        (
            "" if patients is None else str(patients[i]),
            np.ascontiguousarray(row).tobytes(),
            0 if logits is None else logits[i],
        )
        for i, row in enumerate(features)
    ]
    return sorted(range(len(keys)), key=keys.__getitem__)
