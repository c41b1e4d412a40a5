"""Whether a figure is what it would be with other patients trained on: p over relabelled patients.

Under every relabelling the same statistic is computed from the same distances, so the test holds for any number of
images a patient has. A statistic stays as close to its published figure as a preparation that knows no labels (one PCA,
one set of cells, one standardisation, of all real images) allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.resampling import random_patients, relabelling_p
from common.seeds import derive_seed
from memorization.leakage.evidence import Evidence

EXCHANGEABLE = "training and held-out patients are exchangeable to the generator, one-sided"
N_RELABELLINGS = 999  # of statistics that only look up distances
Statistic = Callable[[np.ndarray], float]
"""From who is called trained on, (N,) bool, to a value that copies lower; NaN where it has none."""


@dataclass(frozen=True)
class Pool:
    """All real images, those trained on first, and the generated ones, in one space."""

    real: np.ndarray
    patients: tuple[str, ...]
    in_train: np.ndarray
    generated: np.ndarray


def pool_of(evidence: Evidence) -> Pool:
    """The evidence without its labels, in double precision."""
    in_train = np.arange(len(evidence.real)) < len(evidence.train)
    real, generated = evidence.real.astype(np.float64), np.asarray(evidence.generated, np.float64)
    return Pool(real, evidence.patients, in_train, generated)


def p_over_patients(pool: Pool, statistic: Statistic, seed: int, n_relabellings: int = N_RELABELLINGS) -> float:
    """Share of labellings, the observed one included, with a value as low; NaN where the observed one has none.

    A relabelling without a value counts as low: it must not make a generator look guilty.
    """
    observed = statistic(pool.in_train)
    if np.isnan(observed):
        return float("nan")
    n_trained = len({pool.patients[i] for i in np.flatnonzero(pool.in_train)})
    labels = random_patients(pool.patients, n_trained, n_relabellings, derive_seed(seed, "relabelled"))
    values = np.array([statistic(row) for row in labels])
    return relabelling_p(-observed, -np.nan_to_num(values, nan=-np.inf))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) of features (n, d) and (m, d)."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(a, b, "sqeuclidean"))
