"""Whether generated images are closer in distribution to the training images than to other patients' images."""

from __future__ import annotations

import numpy as np

from common.resampling import equal_subsamples, percentile_interval, random_patients, relabelling_p
from common.seeds import derive_seed
from features.fidelity import frechet_distance
from memorization.leakage.evidence import Evidence, MetricResult

N_SUBSAMPLES = 3  # each costs two distances
N_RELABELLINGS = 199  # each costs two distances; p is at least 1 / 200, below the level of one of six gates


def frechet_gap_figure(evidence: Evidence) -> MetricResult:
    """Fréchet distance of (H, G) minus that of (T, G) with |T| = |H|, its bias being that of the number of images.

    Interval and p by relabelling patients as trained on or held out.
    """
    seed = derive_seed(evidence.seed, "generalization")
    value = _gap(evidence, np.arange(len(evidence.train)), derive_seed(seed, "observed"), N_SUBSAMPLES)
    n_trained = len(set(evidence.train_patients))
    labels = random_patients(evidence.patients, n_trained, N_RELABELLINGS, derive_seed(seed, "labels"))
    relabelled = np.array(
        [_gap(evidence, np.flatnonzero(label), derive_seed(seed, i), 1) for i, label in enumerate(labels)]
    )
    low, high = percentile_interval(relabelled, value)
    return MetricResult(
        value,
        low,
        high,
        interval="relabelled patients",
        baseline=float(relabelled.mean()),
        p=relabelling_p(value, relabelled),
        test="training and held-out patients are exchangeable to the generator, one-sided",
    )


def _gap(evidence: Evidence, in_train: np.ndarray, seed: int, n_subsamples: int) -> float:
    """The gap where the images at ``in_train`` of both sets together are called training images."""
    pool, patients = evidence.real, np.array(evidence.patients)
    in_heldout = np.setdiff1d(np.arange(len(pool)), in_train)
    gaps = [
        frechet_distance(pool[in_heldout[b]], evidence.generated)
        - frechet_distance(pool[in_train[a]], evidence.generated)
        for a, b in equal_subsamples(patients[in_train].tolist(), patients[in_heldout].tolist(), n_subsamples, seed)
    ]
    return float(np.mean(gaps))
