"""Data copying, cell by cell (Meehan et al. 2020, arXiv 2004.05675): C_T, with PCA and cells as in dgm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.resampling import N_RESAMPLES, bootstrap_weights, drawn_counts, percentile_interval
from common.roc import area_under_curve, levels_of
from common.seeds import derive_seed
from features.index import nearest
from memorization.leakage.evidence import CANDIDATES, Evidence, MetricResult
from memorization.leakage.relabelled import EXCHANGEABLE, p_over_patients, pool_of, squared_distances

N_CELLS = 3
N_COMPONENTS = 64
MIN_GENERATED = 20  # a cell counts where more generated images fell


@dataclass(frozen=True)
class Cell:
    """Distances to the cell's training images: levels (n + m,), of which ``is_generated``; positions in both sets."""

    levels: np.ndarray
    is_generated: np.ndarray
    heldout: np.ndarray
    generated: np.ndarray


def copying_figure(evidence: Evidence) -> MetricResult:
    """C_T with its interval over resampled held-out patients and generated images, cells kept.

    Raises:
        InputError: no cell holds held-out images and more than 20 generated ones.
    """
    cells = usable_cells(evidence)
    value = c_t(cells, np.ones(len(evidence.heldout)), np.ones(len(evidence.generated)))
    low, high = percentile_interval(_resampled(evidence, cells), value)
    return MetricResult(
        value,
        low,
        high,
        interval="bootstrap over held-out patients and generated images",
        baseline=0.0,
        p=_p_over_patients(evidence),
        test=EXCHANGEABLE,
    )


def c_t(cells: Sequence[Cell], of_heldout: np.ndarray, of_generated: np.ndarray) -> float:
    """Sum over cells of P_n(cell) Z_U(cell) / sum of P_n(cell), where images count as often as (h,) and (m,) say.

    A cell that lost one of its sides has no say in it; NaN where all did.
    """
    total, weight = 0.0, 0.0
    for cell in cells:
        generated, heldout = np.zeros(len(cell.levels)), np.zeros(len(cell.levels))
        generated[cell.is_generated], heldout[~cell.is_generated] = (
            of_generated[cell.generated],
            of_heldout[cell.heldout],
        )
        if generated.any() and heldout.any():
            total += heldout.sum() * z_score(cell.levels, generated, heldout)
            weight += heldout.sum()
    return total / weight if weight else np.nan


def z_score(levels: np.ndarray, generated: np.ndarray, heldout: np.ndarray) -> float:
    """Z_U = (U - (nm / 2 - 1 / 2)) / sqrt(nm (n + m + 1) / 12), U the pairs whose generated image is farther off."""
    n, m = heldout.sum(), generated.sum()
    u = area_under_curve(levels, generated, heldout) * n * m
    return float((u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))


def usable_cells(evidence: Evidence) -> list[Cell]:
    """The k-means cells of the training images with held-out and enough generated images."""
    train, heldout, generated = _components(evidence.train, evidence.heldout, evidence.generated)
    n_cells = min(N_CELLS, len(np.unique(train, axis=0)))
    labels = _in_cells(n_cells, evidence.seed, train, train, heldout, generated)
    found = []
    for cell in range(n_cells):
        in_train, in_heldout, in_generated = (np.flatnonzero(label == cell) for label in labels)
        if len(in_heldout) and len(in_generated) > MIN_GENERATED:
            queries = np.concatenate([heldout[in_heldout], generated[in_generated]])
            distances = nearest(train[in_train], queries, CANDIDATES)[0][:, 0]
            is_generated = np.arange(len(queries)) >= len(in_heldout)
            found.append(Cell(levels_of(distances), is_generated, in_heldout, in_generated))
    if not found:
        raise InputError(
            f"no cell has held-out images and more than {MIN_GENERATED} of {len(generated)} generated ones",
            where="leakage, C_T",
            fix="generate more images",
        )
    return found


def _in_cells(n_cells: int, seed: int, fitted_to: np.ndarray, *sides: np.ndarray) -> list[np.ndarray]:
    """The cell of every image of each side; cells are k-means' on ``fitted_to``."""
    from sklearn.cluster import KMeans

    means = KMeans(n_cells, n_init=10, random_state=derive_seed(seed, "copying", "cells") % 2**32).fit(fitted_to)
    return [means.predict(side) for side in sides]


def _components(*sides: np.ndarray) -> Sequence[np.ndarray]:
    """The first 64 principal components of the first side."""
    from sklearn.decomposition import PCA

    if sides[0].shape[1] <= N_COMPONENTS:
        return sides
    fitted = PCA(min(N_COMPONENTS, len(sides[0])), svd_solver="full").fit(sides[0])
    return [fitted.transform(side) for side in sides]


def _p_over_patients(evidence: Evidence) -> float:
    """Of C_T over the cells of all real images, which do not change with the labels."""
    pool = pool_of(evidence)
    real, generated = _components(pool.real, pool.generated)
    n_cells = min(N_CELLS, len(np.unique(real, axis=0)))
    of_real, of_generated = _in_cells(n_cells, evidence.seed, real, real, generated)
    tables = []
    for cell in range(n_cells):
        a, b = np.flatnonzero(of_real == cell), np.flatnonzero(of_generated == cell)
        if len(b) > MIN_GENERATED:
            tables.append((a, squared_distances(real[a], real[a]), squared_distances(real[a], generated[b])))

    def statistic(in_train: np.ndarray) -> float:
        total, weight = 0.0, 0
        for members, between, to_generated in tables:
            trained = in_train[members]
            if trained.any() and not trained.all():
                heldout, made = between[np.ix_(trained, ~trained)].min(axis=0), to_generated[trained].min(axis=0)
                is_made = np.arange(len(heldout) + len(made)) >= len(heldout)
                levels = levels_of(np.concatenate([heldout, made]))
                total += len(heldout) * z_score(levels, is_made.astype(float), (~is_made).astype(float))
                weight += len(heldout)
        return total / weight if weight else np.nan

    return p_over_patients(pool, statistic, derive_seed(evidence.seed, "copying"))


def _resampled(evidence: Evidence, cells: Sequence[Cell]) -> np.ndarray:
    """C_T of every resample that has one."""
    seed, m = derive_seed(evidence.seed, "copying"), len(evidence.generated)
    of_heldout = bootstrap_weights(evidence.heldout_patients, N_RESAMPLES, derive_seed(seed, "heldout")).astype(float)
    drawn = drawn_counts(m, N_RESAMPLES, np.random.default_rng(derive_seed(seed, "generated")))
    values = [c_t(cells, heldout, generated) for heldout, generated in zip(of_heldout, drawn, strict=True)]
    return np.array([value for value in values if not np.isnan(value)])
