"""Draws with and without replacement and their intervals; images of one patient are no independent evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.seeds import derive_seed

N_RESAMPLES = 1000
LEVEL = 0.95


def drawn_counts(n_units: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``n_units`` is drawn when as many are drawn with replacement; (n_resamples, n_units)."""
    return np.asarray(rng.multinomial(n_units, np.full(n_units, 1 / n_units), n_resamples))


def percentile_interval(resampled: np.ndarray, centre: float) -> tuple[float, float]:
    """The middle 95 % of the resampled values, moved so that their mean is ``centre``."""
    low, high = np.percentile(resampled - resampled.mean() + centre, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_weights(patients: Sequence[str], n_resamples: int, seed: int | np.random.Generator) -> np.ndarray:
    """How often each image counts when patients are drawn with replacement; (n_resamples, n)."""
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    return np.asarray(drawn_counts(len(names), n_resamples, np.random.default_rng(seed))[:, owner])


def random_patients(patients: Sequence[str], n_chosen: int, n_draws: int, seed: int) -> np.ndarray:
    """Whether an image is of one of ``n_chosen`` patients drawn without replacement; (n_draws, n) bool."""
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    ranks = np.array([rng.permutation(len(names)) for _ in range(n_draws)])
    return np.asarray((ranks < n_chosen)[:, owner])


def equal_subsamples(
    patients_a: Sequence[str], patients_b: Sequence[str], n_subsamples: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions in both sets, as many in each: a nearest distance shrinks with the number of images it is taken over.

    The smaller set stays whole. Of the larger one patients are taken in random order until it is as large, of the last
    patient as many images as are missing. Sets of one size give one pair.
    """
    size = min(len(patients_a), len(patients_b))
    n_subsamples = n_subsamples if len(patients_a) != len(patients_b) else 1
    return [
        (_positions(patients_a, size, derive_seed(seed, i)), _positions(patients_b, size, derive_seed(seed, i)))
        for i in range(n_subsamples)
    ]


def _positions(patients: Sequence[str], size: int, seed: int) -> np.ndarray:
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    if len(owner) == size:
        return np.arange(size)
    place = np.random.default_rng(seed).permutation(len(names))
    return np.sort(np.argsort(place[owner], kind="stable")[:size])


def clopper_pearson(count: float, n: int) -> tuple[float, float]:
    """Exact 95 % interval of a share ``count`` / n (Clopper and Pearson 1934); half counts, of ties, are allowed."""
    from scipy.special import betaincinv  # scipy.stats takes a second and 40 MB to import, too much for sharing.verify

    tail = (1 - LEVEL) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def relabelling_p(observed: float, relabelled: np.ndarray) -> float:
    """Share of relabellings at least as large, the observed labels counted as one: an exact one-sided test."""
    return float((1 + (relabelled >= observed - 1e-12).sum()) / (1 + len(relabelled)))
