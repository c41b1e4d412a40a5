"""Feature statistics of DSL's Dist-FID, small enough to send and offline.

Dist-FID (Chang et al. 2023) is the sum over sites of pi_j * FID(real images of site j, synthetic images). Its Inception
is a download with 2048 features, of which a site's few hundred images determine no covariance; here the features are
EfficientNet-lite0's, projected onto 64 fixed random directions. Values are comparable among themselves only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.fidelity import frechet_distance_of_moments

N_FEATURES = 64
PROJECTION_SEED = 18
EMBEDDER_BATCH_SIZE = 16


@dataclass(frozen=True)
class FeatureStatistics:
    """``mean``: (64,), ``covariance``: (64, 64), float64, of ``n_images`` images."""

    mean: np.ndarray
    covariance: np.ndarray
    n_images: int


def feature_statistics(images: np.ndarray, device: str) -> FeatureStatistics:
    """Statistics of (n, channels, height, width) uint8 or uint16 images; a single image has covariance 0."""
    from features.embedders import build_embedder

    embedder = build_embedder("efficientnet_lite0", batch_size=EMBEDDER_BATCH_SIZE, device=device)
    features = embedder.embed(images).astype(np.float64)
    features = features @ _directions(features.shape[1])
    centred = features - features.mean(axis=0)
    return FeatureStatistics(features.mean(axis=0), centred.T @ centred / max(1, len(features) - 1), len(features))


def pool_statistics(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of the union of several sets of images, whose sizes in pixels may differ."""
    n_images = sum(part.n_images for part in parts)
    mean = sum((part.n_images * part.mean for part in parts), np.zeros(N_FEATURES)) / n_images
    scatter = np.zeros((N_FEATURES, N_FEATURES))
    for part in parts:
        shift = part.mean - mean
        scatter += (part.n_images - 1) * part.covariance + part.n_images * np.outer(shift, shift)
    return FeatureStatistics(mean, scatter / max(1, n_images - 1), n_images)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The Fréchet distance of two sets of images."""
    return frechet_distance_of_moments(a.mean, a.covariance, b.mean, b.covariance)


def _directions(n_inputs: int) -> np.ndarray:
    """(n_inputs, 64) orthonormal columns, scaled to keep the expected squared length of a unit vector."""
    normal = np.random.default_rng(PROJECTION_SEED).standard_normal((n_inputs, N_FEATURES))
    return np.asarray(np.linalg.qr(normal)[0] * np.sqrt(n_inputs / N_FEATURES))
