"""How many generated images are more than a neighbour of a training image (Alaa et al. 2022, arXiv 2102.08921)."""

from __future__ import annotations

from collections.abc import Sequence

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
    """AuthPct of the generated images minus that of the held-out images, in percentage points.

    AuthPct is 100 times the share of authentic images (eq. 7). It depends on the number of dimensions and on near
    duplicates among the training images; the held-out images have the same, so the difference is 0 where nothing is
    copied. The interval joins those of both shares (Newcombe 1998, method 10). Each is the wider of the exact one and
    the bootstrap over patients, of generated images over the patients they lie nearest to: all images near one
    training image are judged by the same distance, so that many of them are little evidence.
    """
    seed = derive_seed(evidence.seed, "authenticity")
    of_generated = authentic(evidence.train, evidence.generated)
    of_heldout = authentic(evidence.train, evidence.heldout)
    closest = nearest(evidence.train, evidence.generated, CANDIDATES)[1][:, 0]
    share, low, high = _with_interval(of_generated, [evidence.train_patients[i] for i in closest], seed)
    honest, honest_low, honest_high = _with_interval(
        of_heldout, evidence.heldout_patients, derive_seed(seed, "heldout")
    )
    value = share - honest
    return MetricResult(
        100 * value,
        100 * (value - float(np.hypot(share - low, honest_high - honest))),
        100 * (value + float(np.hypot(high - share, honest - honest_low))),
        interval="of both shares (Clopper-Pearson or bootstrap over patients, the wider), joined as Newcombe's",
        baseline=0.0,
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


def _with_interval(hits: np.ndarray, patients: Sequence[str], seed: int) -> tuple[float, float, float]:
    """The share of ``hits`` (n,) and its 95 % interval, the wider of the exact one and the bootstrap over patients."""
    share, exact = float(hits.mean()), clopper_pearson(float(hits.sum()), len(hits))
    weights = bootstrap_weights(patients, N_RESAMPLES, seed)
    low, high = percentile_interval((weights @ hits) / weights.sum(axis=1), share)
    return share, min(exact[0], max(0.0, low)), max(exact[1], min(1.0, high))
