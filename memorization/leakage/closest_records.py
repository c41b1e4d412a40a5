"""Whether generated images lie closer to the training images than to other patients' images.

The share is that of SDMetrics' DCROverfittingProtection ("distance to closest record") on feature distances.
"""

from __future__ import annotations

import numpy as np

from common.resampling import N_RESAMPLES, equal_subsamples, percentile_interval, random_patients, relabelling_p
from common.seeds import derive_seed
from features.index import nearest
from memorization.leakage.evidence import CANDIDATES, Evidence, MetricResult

N_SUBSAMPLES = 10


def closest_record_figure(evidence: Evidence) -> MetricResult:
    """p = mean 1[d1(g; T) < d1(g; H)] with |T| = |H|, ties counted half, averaged over subsamples of patients.

    Interval and p relabel whole patients as trained on or held out, and hold for any numbers. p is one-sided, as copies
    lie near the training images: two-sided, labellings that call the most copied patients held out counted as well, and
    few patients could not reach a small p. A binomial test would not hold: with more generated than real images it
    finds a generator guilty that copies nothing, as by chance one side fills more of the space (100 + 100 real, 1000
    generated images, 16 dimensions: p < .05 in 40 of 100 draws).
    """
    seed = derive_seed(evidence.seed, "closest_records")
    shares = []
    for a, b in equal_subsamples(evidence.train_patients, evidence.heldout_patients, N_SUBSAMPLES, seed):
        to_train, to_heldout = (
            nearest(side, evidence.generated, CANDIDATES)[0][:, 0] for side in (evidence.train[a], evidence.heldout[b])
        )
        shares.append(((to_train < to_heldout) + 0.5 * (to_train == to_heldout)).mean())
    share = float(np.mean(shares))
    # share of the generated images that lie nearest to each real one: it does not change with the labels
    distances, positions = nearest(evidence.real, evidence.generated, CANDIDATES)
    tied = distances == distances[:, :1]
    counts = np.bincount(positions.ravel(), (tied / tied.sum(axis=1, keepdims=True)).ravel(), len(evidence.real))
    nearest_share = counts / len(evidence.generated)
    drawn_by = derive_seed(evidence.seed, "closest_records", "labels")
    labels = random_patients(evidence.patients, len(set(evidence.train_patients)), N_RESAMPLES, drawn_by)
    relabelled = labels @ nearest_share
    observed = float(nearest_share[: len(evidence.train)].sum())
    low, high = percentile_interval(relabelled, share)
    return MetricResult(
        value=share,
        low=max(0.0, low),
        high=min(1.0, high),
        interval="relabelled patients",
        baseline=0.5,
        p=relabelling_p(observed, relabelled),
        test="training and held-out patients are exchangeable to the generator, one-sided",
    )
