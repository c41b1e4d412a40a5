"""What the measures of leakage compare, and the form of their values."""

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

    Features are unit vectors, or of that order: ``features.index`` takes smaller squared distances than 1e-9 for 0.

    Raises:
        InputError: features that are not finite or of different dimensions, fewer than two images or patients in a set,
            or a patient in both sets of real images.
    """

    train: np.ndarray
    train_patients: Sequence[str]
    heldout: np.ndarray
    heldout_patients: Sequence[str]
    generated: np.ndarray
    seed: int = 0

    def __post_init__(self) -> None:
        sets = {name: np.asarray(getattr(self, name)) for name in ("train", "heldout", "generated")}
        for name, features in sets.items():
            if features.ndim != 2 or features.shape[1:] != sets["train"].shape[1:] or len(features) < 2:
                raise _refusal(
                    f"{name} features have shape {features.shape}", "give (images, features), two images or more"
                )
            if not np.isfinite(features).all():
                raise _refusal(f"{name} features hold NaN or infinity", "drop images that cannot be embedded")
        for name in ("train", "heldout"):
            patients, n_images = getattr(self, f"{name}_patients"), len(sets[name])
            if len(patients) != n_images or len(set(patients)) < 2:
                problem = f"{n_images} {name} images name {len(set(patients))} patients"
                raise _refusal(problem, "name the patient of each image, at least two")
        shared = set(self.train_patients) & set(self.heldout_patients)
        if shared:
            raise _refusal(f"{len(shared)} patients are trained on and held out", "hold out whole patients")
        # by patient, then by the features' bytes, so that seeded draws take the same images in any stored order
        for name, features in sets.items():
            owners = [str(patient) for patient in getattr(self, f"{name}_patients", [""] * len(features))]
            keys = [(owner, np.ascontiguousarray(row).tobytes()) for owner, row in zip(owners, features, strict=True)]
            order = sorted(range(len(keys)), key=keys.__getitem__)
            object.__setattr__(self, name, features[order])
            if name != "generated":
                object.__setattr__(self, f"{name}_patients", tuple(owners[i] for i in order))

    @property
    def real(self) -> np.ndarray:
        """(n + h, d), those trained on first."""
        return np.concatenate([self.train, self.heldout])

    @property
    def patients(self) -> tuple[str, ...]:
        """Of each of the real images."""
        return (*self.train_patients, *self.heldout_patients)


@dataclass(frozen=True)
class MetricResult:
    """A measured value with its 95 % interval.

    ``interval`` says how the interval was made, ``baseline`` is the value of a generator that copies nothing on the
    same images and ``p`` the probability of a value at least as extreme under ``test``; NaN where there is none.
    """

    value: float
    low: float
    high: float
    interval: str
    baseline: float = math.nan
    p: float = math.nan
    test: str = ""


def _refusal(problem: str, fix: str) -> InputError:
    return InputError(problem, where="leakage", fix=fix)
