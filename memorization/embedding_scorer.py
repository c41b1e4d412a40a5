"""Likeness by the features of a frozen network: the paper's way of looking, as one scorer among others."""

from __future__ import annotations

import numpy as np

from common.progress import Progress, silent
from features.embedders import Embedder
from features.index import RESOLUTION_L2
from memorization.likeness import Likeness

BLOCK = 256


class EmbeddingScorer:
    """``-log`` of the squared distance of unit vectors; mirror images of the references count as references."""

    def __init__(self, embedder: Embedder, mirrored: bool = True) -> None:
        self.name = embedder.name
        self.statistics: tuple[str, ...] = (embedder.name,)
        self._embedder, self._mirrored = embedder, mirrored

    def index(self, references: np.ndarray) -> EmbeddedReferences:
        """Embed (n, channels, height, width), and mirrored too."""
        views = [references, references[..., ::-1]] if self._mirrored else [references]
        features = np.stack([self._embedder.embed(view) for view in views])
        return EmbeddedReferences(self._embedder, EmbeddedFeatures(features))


class EmbeddedReferences:
    """References by their features."""

    def __init__(self, embedder: Embedder, features: EmbeddedFeatures) -> None:
        self._embedder, self._features = embedder, features

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """The nearest reference of every image."""
        return self._features.compare(self._embedder.embed(images, progress), excluded)


class EmbeddedFeatures:
    """``features`` (views, n, d) unit vectors: an image's nearest view counts."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = features.astype(np.float64)

    def compare(self, features: np.ndarray, excluded: np.ndarray | None = None) -> Likeness:
        """The nearest reference of every image, (m, d) unit vectors."""
        values, nearest = [np.zeros((0, 1))], [np.zeros((0, 1), np.int64)]
        for start in range(0, len(features), BLOCK):
            block = slice(start, start + BLOCK)
            closeness = np.einsum("vnd,md->vmn", self._features, features[block].astype(np.float64), optimize=True)
            distances = np.maximum(2 - 2 * closeness.max(axis=0), RESOLUTION_L2)
            if excluded is not None:
                distances[excluded[block]] = np.inf
            closest = distances.argmin(axis=1)
            values.append(-np.log(distances[np.arange(len(closest)), closest])[:, None])
            nearest.append(closest[:, None])
        return Likeness(np.concatenate(values), np.concatenate(nearest))
