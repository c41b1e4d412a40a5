"""Scores that rise with the suspicion that an image was trained on, from generated and reference images alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from features.index import nearest
from memorization.leakage.evidence import CANDIDATES

N_NEIGHBOURS = 5
N_DENSITY_COMPONENTS = 8
BLOCK = 1024  # images whose distances to all generated ones are in memory at once
SMALLEST_DISTANCE = 1e-9  # stands for 0 under a logarithm


@dataclass(frozen=True)
class Attack:
    """``score``(images (q, d), generated (m, d), reference (r, d)) -> (q,), larger for members."""

    name: str
    source: str
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def full_black_box(images: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """-d1(x; G): how well the generator reconstructs the image."""
    return -_distances(generated, images)[:, 0]


def calibrated(images: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """d1(x; R) - d1(x; G): an image that lies near everything is no suspect."""
    return np.asarray(_distances(reference, images)[:, 0] - _distances(generated, images)[:, 0])


def monte_carlo(images: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Share of generated images within eps, the median over the images of d1(x; G)."""
    from scipy.spatial.distance import cdist

    eps = np.median(_distances(generated, images)[:, 0])
    blocks = [images[start : start + BLOCK] for start in range(0, len(images), BLOCK)]
    return np.concatenate([(cdist(block, generated, "sqeuclidean") <= eps**2).mean(axis=1) for block in blocks])


def density_ratio(images: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """log p_G(x) / p_R(x) by Gaussian kernels (Scott's width) on whitened principal components of G and R."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KernelDensity

    both = np.concatenate([generated, reference]).astype(np.float64)
    components = PCA(min(N_DENSITY_COMPONENTS, *both.shape), whiten=True, svd_solver="full").fit(both)
    of_images, of_generated, of_reference = (components.transform(side) for side in (images, generated, reference))
    of_g, of_r = (KernelDensity(bandwidth="scott", leaf_size=len(x)).fit(x) for x in (of_generated, of_reference))
    return np.asarray(of_g.score_samples(of_images) - of_r.score_samples(of_images))


def neighbour_density_ratio(images: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """log r_k(x; R) / r_k(x; G), r_k the distance of the k-th neighbour, k = 5: a density ratio without a width."""
    to_reference, to_generated = (_distances(side, images)[:, :N_NEIGHBOURS][:, -1] for side in (reference, generated))
    return np.asarray(np.log(to_reference + SMALLEST_DISTANCE) - np.log(to_generated + SMALLEST_DISTANCE))


def nearest_mean(images: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Minus the mean distance to the five nearest generated images."""
    return -_distances(generated, images)[:, :N_NEIGHBOURS].mean(axis=1)


ATTACKS = (
    Attack("full black box", "GAN-Leaks, Chen et al. 2020, section 4.3", full_black_box),
    Attack("calibrated full black box", "GAN-Leaks, Chen et al. 2020, section 4.6", calibrated),
    Attack("Monte Carlo", "Hilprecht et al. 2019, median heuristic", monte_carlo),
    Attack("density ratio", "DOMIAS, van Breugel et al. 2023, kernel densities", density_ratio),
    Attack("neighbour density ratio", "DOMIAS with k-nearest-neighbour densities", neighbour_density_ratio),
    Attack("nearest mean", "GAN-Leaks with five neighbours", nearest_mean),
)


def _distances(references: np.ndarray, images: np.ndarray) -> np.ndarray:
    return np.sqrt(nearest(references, images, CANDIDATES)[0])
