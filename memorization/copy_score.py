"""The fused rule's statistics: registration, and the distance of the embedder's features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.progress import Progress, silent
from common.seeds import derive_seed
from memorization.embedding_scorer import EmbeddedFeatures
from memorization.likeness import Likeness, joined
from memorization.registration.agreement import NAMES
from memorization.registration.scorer import RegisteredReferences

FEATURES = "features"
FUSED_STATISTICS = (FEATURES, *NAMES)
DUPLICATE_OF = NAMES.index("0 to 1 px, best 100 %")  # agreement of the finest detail over the whole frame
DUPLICATE_CORRELATION = 0.99
MAX_CALIBRATING = 200  # images, drawn with a fixed seed: p-values are fine enough then, and each costs a search


class FusedIndex:
    """Real images, ready to be compared with by all statistics of the fused rule."""

    def __init__(self, images: np.ndarray, features: np.ndarray, mirrored: np.ndarray | None) -> None:
        self._features = EmbeddedFeatures(features[None] if mirrored is None else np.stack([features, mirrored]))
        self._registered = RegisteredReferences(images)

    def compare(
        self, images: np.ndarray, features: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent
    ) -> Likeness:
        """Images and their features against all references but those ``excluded`` (m, n)."""
        return joined(
            [self._features.compare(features, excluded), self._registered.compare(images, excluded, progress)]
        )


@dataclass(frozen=True, eq=False)
class RealToReal:
    """How alike images of different patients of a site are.

    ``values`` (n, statistics) of the images that calibrate, ``images`` (n,) which of the images given they are;
    ``duplicates``: (image, its duplicate) among the images given, of two patients, which do not calibrate: they are one
    image under two names, and would let copies pass.
    """

    values: np.ndarray
    images: np.ndarray
    duplicates: tuple[tuple[int, int], ...]


def real_to_real(
    images: np.ndarray,
    features: np.ndarray,
    mirrored: np.ndarray | None,
    patients: np.ndarray,
    indexed: np.ndarray,
    progress: Progress = silent,
) -> RealToReal:
    """Compare images with those of other patients among the ``indexed`` (n,), the filter's references.

    Every image, or ``MAX_CALIBRATING`` of them.
    """
    positions = np.flatnonzero(indexed)
    index = FusedIndex(images[positions], features[positions], None if mirrored is None else mirrored[positions])
    same_patient = patients[:, None] == patients[positions][None]
    queries = drawn(np.flatnonzero(~same_patient.all(axis=1)))  # an index's only patient has nobody to be compared with
    likeness = index.compare(images[queries], features[queries], same_patient[queries], progress)
    column = 1 + DUPLICATE_OF
    is_duplicate = likeness.values[:, column] >= -np.log(1 - DUPLICATE_CORRELATION)
    duplicates = np.flatnonzero(is_duplicate)
    pairs = [(int(queries[row]), int(positions[likeness.nearest[row, column]])) for row in duplicates]
    return RealToReal(likeness.values[~is_duplicate], queries[~is_duplicate], tuple(pairs))


def drawn(positions: np.ndarray) -> np.ndarray:
    """At most ``MAX_CALIBRATING`` of them, in order."""
    if len(positions) <= MAX_CALIBRATING:
        return positions
    rng = np.random.default_rng(derive_seed(0, "calibrating"))
    return np.sort(rng.choice(positions, MAX_CALIBRATING, replace=False))
