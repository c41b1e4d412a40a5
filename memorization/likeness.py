"""What every scorer gives: how alike each image is to the most alike reference, by one or more statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Likeness:
    """``values`` (m, statistics), larger is more alike; ``nearest`` (m, statistics): the reference each belongs to."""

    values: np.ndarray
    nearest: np.ndarray


class References(Protocol):
    """Real images, ready to be compared with."""

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """Compare (m, channels, height, width) with every reference but those ``excluded`` (m, n) names as True."""


class Scorer(Protocol):
    """One way to see that two images are alike; deterministic."""

    name: str
    statistics: tuple[str, ...]

    def index(self, references: np.ndarray) -> References:
        """Make (n, channels, height, width) ready."""


class Learner(Protocol):
    """A scorer that is trained on images of the site first; those calibrate nothing, whatever it becomes.

    Training pushes its own images apart, so they look less alike to it than images that it has not seen. A threshold
    set on them would drop honest images by the dozen.
    """

    name: str
    statistics: tuple[str, ...]

    def train(self, images: np.ndarray, seed: int, progress: Progress = silent) -> Scorer:
        """Learn from (n, channels, height, width); the same to the last bit for the same images and seed."""


def joined(parts: Sequence[Likeness]) -> Likeness:
    """The statistics of several scorers side by side."""
    return Likeness(
        np.concatenate([part.values for part in parts], 1), np.concatenate([part.nearest for part in parts], 1)
    )


def stacked(parts: Sequence[Likeness]) -> Likeness:
    """The images of several comparisons one after the other."""
    return Likeness(np.concatenate([part.values for part in parts]), np.concatenate([part.nearest for part in parts]))
