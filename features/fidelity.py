"""How far a set of images is from another, by their features: Fréchet distance and unbiased kernel distance.

The Fréchet distance (Heusel et al. 2017) compares means and covariances; with few images it is biased upwards. The
kernel distance (Binkowski et al. 2018) is unbiased for any number, and may be negative for equal distributions.
Intervals say how far the estimate would move with other images of the same sources; they remove no bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.resampling import bootstrap_weights, drawn_counts, percentile_interval

N_RESAMPLES = 200
KERNEL_DEGREE, KERNEL_OFFSET = 3, 1.0


@dataclass(frozen=True)
class Estimate:
    """A distance, its standard error and its 95 % interval over resampled images."""

    value: float
    standard_error: float
    low: float
    high: float


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of features (n, d) and (m, d), n, m >= 1; a single image has covariance 0.

    With centred rows A / sqrt(n - 1) and B / sqrt(m - 1) the trace of (S_a S_b)^(1/2) is the sum of the singular
    values of A B^T: no covariance is formed, so that fewer images than features are as exact as many.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    factor_a, factor_b = _covariance_factor(a), _covariance_factor(b)
    shared = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.square(factor_a).sum() + np.square(factor_b).sum()
    return max(0.0, float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + spread - 2 * shared))


def frechet_distance_of_moments(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of means (d,) and covariances (d, d), singular ones too."""
    root_a, root_b = _square_root(covariance_a), _square_root(covariance_b)
    shared = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()  # singular values squared: eigenvalues of S_a S_b
    distance = np.square(np.asarray(mean_a, np.float64) - mean_b).sum()
    return max(0.0, float(distance + np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared))


def kernel_distance(
    a: np.ndarray,
    b: np.ndarray,
    owners_b: Sequence[str] | None = None,
    owners_a: Sequence[str] | None = None,
) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d), n, m >= 2, under (x y / d + 1)^3.

    Where the owners of a set name each image's patient, two images of one patient are no pair: they are no two draws.
    """
    kernels, pairs = _kernels(a, b), _pairs(len(a), len(b), owners_a, owners_b)
    return float(_weighted_discrepancy(kernels, pairs, np.ones((1, len(a))), np.ones((1, len(b))))[0])


def frechet_interval(
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    *,
    owners_a: Sequence[str] | None = None,
    owners_b: Sequence[str] | None = None,
) -> Estimate:
    """The Fréchet distance with its bootstrap interval: images of both sets are resampled with replacement.

    Where the owners of a set, its images' patients, are named, patients of it are resampled instead. The repeats in a
    resample raise the distance, so the resamples are shifted to have the estimate as their mean.
    """

    def resample(draw_a: np.ndarray, draw_b: np.ndarray) -> float:
        return frechet_distance(a[np.repeat(np.arange(len(a)), draw_a)], b[np.repeat(np.arange(len(b)), draw_b)])

    draws_a, draws_b = _draws(len(a), len(b), seed, owners_a, owners_b)
    values = np.array([resample(*draw) for draw in zip(draws_a, draws_b, strict=True)])
    return estimate_of(frechet_distance(a, b), values)


def kernel_interval(
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    *,
    owners_a: Sequence[str] | None = None,
    owners_b: Sequence[str] | None = None,
) -> Estimate:
    """The kernel distance with its bootstrap interval: resampled as in ``frechet_interval``.

    An image is never paired with its own repeat (a patient's, with another of that patient), so that a resample is as
    unbiased as the estimate.
    """
    draws = _draws(len(a), len(b), seed, owners_a, owners_b)
    resampled = _weighted_discrepancy(_kernels(a, b), _pairs(len(a), len(b), owners_a, owners_b), *draws)
    return estimate_of(kernel_distance(a, b, owners_b, owners_a), resampled)


def _covariance_factor(features: np.ndarray) -> np.ndarray:
    """F with F^T F the covariance and at most d rows."""
    factor = (features - features.mean(axis=0)) / np.sqrt(max(1, len(features) - 1))
    return np.asarray(np.linalg.qr(factor, mode="r") if len(factor) > factor.shape[1] else factor)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def _kernels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel matrices within ``a``, within ``b`` and between them."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return _kernel(a, a), _kernel(b, b), _kernel(a, b)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x @ y.T / x.shape[1] + KERNEL_OFFSET) ** KERNEL_DEGREE)


def _pairs(
    n_a: int, n_b: int, owners_a: Sequence[str] | None, owners_b: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 where two images are a pair of independent draws, else 0, within ``a``, within ``b`` and between them."""
    within_a, within_b = (
        (units[:, None] != units).astype(np.float64)
        for units in (
            np.arange(n) if owners is None or len(set(owners)) < 2 else np.asarray(owners)
            for n, owners in ((n_a, owners_a), (n_b, owners_b))
        )
    )
    return within_a, within_b, np.ones((n_a, n_b))


def _weighted_discrepancy(
    kernels: tuple[np.ndarray, ...], pairs: tuple[np.ndarray, ...], weights_a: np.ndarray, weights_b: np.ndarray
) -> np.ndarray:
    """One value a row of the weights (r, n) and (r, m), how often an image counts."""
    sides = ((weights_a, weights_a), (weights_b, weights_b), (weights_a, weights_b))

    def total(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.asarray(((left @ matrix) * right).sum(axis=1))

    inside_a, inside_b, between = (
        total(kernel * pair, *side) / np.maximum(total(pair, *side), 1)
        for kernel, pair, side in zip(kernels, pairs, sides, strict=True)
    )
    return np.asarray(inside_a + inside_b - 2 * between)


def _draws(
    n_a: int, n_b: int, seed: int, owners_a: Sequence[str] | None, owners_b: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """How often each image is drawn: (N_RESAMPLES, n_a) and (N_RESAMPLES, n_b)."""
    rng = np.random.default_rng(seed)
    draws_a, draws_b = (
        drawn_counts(n, N_RESAMPLES, rng) if owners is None else bootstrap_weights(owners, N_RESAMPLES, rng)
        for n, owners in ((n_a, owners_a), (n_b, owners_b))
    )
    return draws_a, draws_b


def estimate_of(value: float, resampled: np.ndarray) -> Estimate:
    """The value with what its resamples, moved to it, say."""
    return Estimate(value, float(resampled.std(ddof=1)), *percentile_interval(resampled, value))
