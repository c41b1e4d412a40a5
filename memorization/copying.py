"""Data copying, cell by cell (Meehan et al. 2020, arXiv 2004.05675): C_T, with PCA and cells as in dgm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.bootstrap import drawn_counts, percentile_interval
from common.errors import InputError
from common.seeds import derive_seed
from memorization.evidence import CANDIDATES, Evidence, Figure
from memorization.index import nearest
from memorization.resampling import N_RESAMPLES, bootstrap_weights
from memorization.roc import area_under_curve, levels_of

N_CELLS = 3
N_COMPONENTS = 64
MIN_GENERATED = 20  # a cell counts where more generated images fell


@dataclass(frozen=True)
class _Cell:
    """Distances to the cell's training images: levels (n + m,), of which ``is_generated``; positions in both sets."""

    levels: np.ndarray
    is_generated: np.ndarray
    heldout: np.ndarray
    generated: np.ndarray


@dataclass(frozen=True)
class CopyingTest:
    """C_T, its standard error under independence, and how many cells were used."""

    c_t: float
    standard_error: float
    n_cells: int


def copying_test(evidence: Evidence) -> CopyingTest:
    """C_T = sum over cells of P_n(cell) Z_U(cell) / sum of P_n(cell), cells with enough generated images only.

    Raises:
        InputError: no cell holds held-out images and more than 20 generated ones.
    """
    return _test(_cells(evidence))


def _test(cells: Sequence[_Cell]) -> CopyingTest:
    weights = np.array([len(cell.heldout) for cell in cells], float)
    weights /= weights.sum()
    scores = [z_score(cell.levels, *_weights_of(cell)) for cell in cells]
    return CopyingTest(float(weights @ scores), float(np.sqrt(np.square(weights).sum())), len(cells))


def copying_figure(evidence: Evidence) -> Figure:
    """C_T with its interval over resampled held-out patients and generated images, cells kept."""
    from scipy.stats import norm

    cells = _cells(evidence)
    result = _test(cells)
    low, high = percentile_interval(_resampled(evidence, cells), result.c_t)
    return Figure(
        result.c_t,
        low,
        high,
        interval="bootstrap over held-out patients and generated images",
        baseline=0.0,
        p=float(norm.cdf(result.c_t / result.standard_error)),
        test="generated images are no nearer to training images than held-out ones, one-sided, images independent",
    )


def z_score(levels: np.ndarray, generated: np.ndarray, heldout: np.ndarray) -> float:
    """Z_U = (U - (nm / 2 - 1 / 2)) / sqrt(nm (n + m + 1) / 12), U the pairs whose generated image is farther off."""
    n, m = heldout.sum(), generated.sum()
    u = area_under_curve(levels, generated, heldout) * n * m
    return float((u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))


def _cells(evidence: Evidence) -> list[_Cell]:
    from sklearn.cluster import KMeans

    train, heldout, generated = _components(evidence.train, evidence.heldout, evidence.generated)
    n_cells = min(N_CELLS, len(np.unique(train, axis=0)))
    seed = derive_seed(evidence.seed, "copying", "cells") % 2**32
    means = KMeans(n_cells, n_init=10, random_state=seed).fit(train)
    labels = [means.predict(side) for side in (train, heldout, generated)]
    found = []
    for cell in range(n_cells):
        in_train, in_heldout, in_generated = (np.flatnonzero(label == cell) for label in labels)
        if len(in_heldout) and len(in_generated) > MIN_GENERATED:
            queries = np.concatenate([heldout[in_heldout], generated[in_generated]])
            distances = nearest(train[in_train], queries, CANDIDATES)[0][:, 0]
            is_generated = np.arange(len(queries)) >= len(in_heldout)
            found.append(_Cell(levels_of(distances), is_generated, in_heldout, in_generated))
    if not found:
        raise InputError(
            f"no cell has held-out images and more than {MIN_GENERATED} of {len(generated)} generated ones",
            where="leakage, C_T",
            fix="generate more images",
        )
    return found


def _components(*sides: np.ndarray) -> Sequence[np.ndarray]:
    """The first 64 principal components of the training images, the first side."""
    from sklearn.decomposition import PCA

    if sides[0].shape[1] <= N_COMPONENTS:
        return sides
    fitted = PCA(min(N_COMPONENTS, len(sides[0])), svd_solver="full").fit(sides[0])
    return [fitted.transform(side) for side in sides]


def _weights_of(cell: _Cell) -> tuple[np.ndarray, np.ndarray]:
    return cell.is_generated.astype(float), (~cell.is_generated).astype(float)


def _resampled(evidence: Evidence, cells: Sequence[_Cell]) -> np.ndarray:
    """C_T of every resample; a cell that lost one of its sides has no say in it."""
    seed, m = derive_seed(evidence.seed, "copying"), len(evidence.generated)
    of_heldout = bootstrap_weights(evidence.heldout_patients, N_RESAMPLES, derive_seed(seed, "heldout")).astype(float)
    drawn = drawn_counts(m, N_RESAMPLES, np.random.default_rng(derive_seed(seed, "generated")))
    values = [_resample(cells, heldout, generated) for heldout, generated in zip(of_heldout, drawn, strict=True)]
    return np.array([value for value in values if not np.isnan(value)])


def _resample(cells: Sequence[_Cell], heldout: np.ndarray, generated: np.ndarray) -> float:
    total, weight = 0.0, 0.0
    for cell in cells:
        positive, negative = np.zeros(len(cell.levels)), np.zeros(len(cell.levels))
        positive[cell.is_generated], negative[~cell.is_generated] = generated[cell.generated], heldout[cell.heldout]
        if positive.any() and negative.any():
            total += negative.sum() * z_score(cell.levels, positive, negative)
            weight += negative.sum()
    return total / weight if weight else np.nan
