"""Whether generated images lie closer to the training images than to other patients' images.

The share and score are SDMetrics' DCROverfittingProtection ("distance to closest record") on feature distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.bootstrap import percentile_interval
from common.resampling import (
    N_RESAMPLES,
    clopper_pearson,
    equal_subsamples,
    random_patients,
    relabelling_p,
)
from common.seeds import derive_seed
from features.index import nearest
from memorization.leakage.evidence import CANDIDATES, Evidence, MetricResult

N_SUBSAMPLES = 10


@dataclass(frozen=True)
class ClosestRecordShare:
    """Share of generated images closer to training than to held-out images, ties counted half.

    ``interval`` (Clopper-Pearson) and ``p_binomial`` (two-sided, against .5) hold for these real images: with more
    generated than real images they find an honest generator guilty, as by chance one side fills more of the space
    (100 + 100 real, 1000 generated images, 16 dimensions: p < .05 in 40 of 100 honest draws). ``p_patients`` and
    ``patient_interval`` relabel whole patients as trained on or held out and hold for any numbers.
    """

    share: float
    score: float
    interval: tuple[float, float]
    p_binomial: float
    patient_interval: tuple[float, float]
    p_patients: float
    n_images: int  # on each side
    n_subsamples: int


def closest_record_share(evidence: Evidence) -> ClosestRecordShare:
    """p = mean 1[d1(g; T) < d1(g; H)] with |T| = |H|, averaged over subsamples of patients; score min(2 (1 - p), 1)."""
    pairs = equal_subsamples(
        evidence.train_patients, evidence.heldout_patients, N_SUBSAMPLES, derive_seed(evidence.seed, "closest_records")
    )
    shares = [_closer(evidence.train[a], evidence.heldout[b], evidence.generated).mean() for a, b in pairs]
    share, n_generated = float(np.mean(shares)), len(evidence.generated)
    patient_interval, p_patients = _over_patients(evidence, share)
    return ClosestRecordShare(
        share=share,
        score=float(np.mean([min(2 * (1 - value), 1) for value in shares])),
        interval=clopper_pearson(share * n_generated, n_generated),
        p_binomial=_binomial_p(share, n_generated),
        patient_interval=patient_interval,
        p_patients=p_patients,
        n_images=len(pairs[0][0]),
        n_subsamples=len(pairs),
    )


def closest_record_figure(evidence: Evidence) -> MetricResult:
    """The share with its interval and p over relabelled patients."""
    result = closest_record_share(evidence)
    return MetricResult(
        result.share,
        *result.patient_interval,
        interval="relabelled patients",
        baseline=0.5,
        p=result.p_patients,
        test="training and held-out patients are exchangeable to the generator, two-sided",
    )


def _closer(train: np.ndarray, heldout: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """1 where the nearest image is a training image, .5 at ties, else 0; (m,)."""
    to_train, to_heldout = (nearest(side, generated, CANDIDATES)[0][:, 0] for side in (train, heldout))
    return np.asarray((to_train < to_heldout) + 0.5 * (to_train == to_heldout))


def _binomial_p(share: float, n: int) -> float:
    from scipy.stats import binomtest

    # ties and subsamples leave fractions; rounding towards one half can only raise p
    count = np.floor(share * n) if share > 0.5 else np.ceil(share * n)
    return float(binomtest(int(count), n).pvalue)


def _over_patients(evidence: Evidence, share: float) -> tuple[tuple[float, float], float]:
    """Interval and two-sided p by relabelling all patients: who lies nearest does not change with the labels."""
    pool = np.concatenate([evidence.train, evidence.heldout])
    patients = (*evidence.train_patients, *evidence.heldout_patients)
    distances, positions = nearest(pool, evidence.generated, CANDIDATES)
    tied = distances == distances[:, :1]
    nearest_share = np.bincount(positions.ravel(), (tied / tied.sum(axis=1, keepdims=True)).ravel(), len(pool)) / len(
        evidence.generated
    )
    labels = random_patients(
        patients,
        len(set(evidence.train_patients)),
        N_RESAMPLES,
        derive_seed(evidence.seed, "closest_records", "labels"),
    )
    relabelled = labels @ nearest_share
    observed = float(nearest_share[: len(evidence.train)].sum())
    centre = float(relabelled.mean())
    p = relabelling_p(abs(observed - centre), np.abs(relabelled - centre))
    low, high = percentile_interval(relabelled, share)
    return (max(0.0, low), min(1.0, high)), p
