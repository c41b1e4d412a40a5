"""How many generated images are more than a neighbour of a training image (Alaa et al. 2022, arXiv 2102.08921)."""

from __future__ import annotations

import numpy as np

from common.resampling import N_RESAMPLES, bootstrap_weights, clopper_pearson, percentile_interval
from common.seeds import derive_seed
from features.index import nearest
from memorization.leakage.evidence import CANDIDATES, Evidence, MetricResult
from memorization.leakage.relabelled import EXCHANGEABLE, p_over_patients, pool_of, squared_distances


def authentic(train: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Whether d(g, t*) > min over t' != t* of d(t*, t'), t* the training image nearest to g (eq. 7); (m,) bool."""
    distances, positions = nearest(train, images, CANDIDATES)
    to_others = nearest(train, train, CANDIDATES)[0][:, 1]
    return np.asarray(distances[:, 0] > to_others[positions[:, 0]])


def authenticity_figure(evidence: Evidence) -> MetricResult:
    """AuthPct: 100 times the share of authentic images; the baseline is that of the held-out images.

    The interval is the wider of the exact one and the bootstrap over the patients the images lie nearest to: all images
    near one training image are judged by the same distance, so that many of them are little evidence.
    """
    of_generated = authentic(evidence.train, evidence.generated)
    of_heldout = authentic(evidence.train, evidence.heldout)
    exact = clopper_pearson(float(of_generated.sum()), len(of_generated))
    over_patients = _interval_over_patients(evidence, of_generated)
    return MetricResult(
        100 * float(of_generated.mean()),
        100 * min(exact[0], over_patients[0]),
        100 * max(exact[1], over_patients[1]),
        interval="Clopper-Pearson or bootstrap over nearest patients, the wider",
        baseline=100 * float(of_heldout.mean()),
        p=_p_over_patients(evidence),
        test=EXCHANGEABLE,
    )


def _p_over_patients(evidence: Evidence) -> float:
    """Of the share of authentic generated images minus that of authentic held-out images."""
    pool = pool_of(evidence)
    between = squared_distances(pool.real, pool.real)
    np.fill_diagonal(between, np.inf)
    to_generated = squared_distances(pool.real, pool.generated)

    def statistic(in_train: np.ndarray) -> float:
        to_others = between[np.ix_(in_train, in_train)].min(axis=1)
        of_generated, of_heldout = (
            float(np.mean(distances.min(axis=0) > to_others[distances.argmin(axis=0)]))
            for distances in (to_generated[in_train], between[np.ix_(in_train, ~in_train)])
        )
        return of_generated - of_heldout

    return p_over_patients(pool, statistic, derive_seed(evidence.seed, "authenticity"))


def _interval_over_patients(evidence: Evidence, of_generated: np.ndarray) -> tuple[float, float]:
    closest = nearest(evidence.train, evidence.generated, CANDIDATES)[1][:, 0]
    patients = [evidence.train_patients[i] for i in closest]
    weights = bootstrap_weights(patients, N_RESAMPLES, derive_seed(evidence.seed, "authenticity"))
    resampled = (weights @ of_generated) / weights.sum(axis=1)
    low, high = percentile_interval(resampled, float(of_generated.mean()))
    return max(0.0, low), min(1.0, high)
