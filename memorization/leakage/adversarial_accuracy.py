"""Whether a nearest-neighbour rule tells generated images from training images better than from others (Yale 2020)."""

from __future__ import annotations

import numpy as np

from common.resampling import N_RESAMPLES, bootstrap_weights, drawn_counts, equal_subsamples, percentile_interval
from common.seeds import derive_seed
from features.index import nearest
from memorization.leakage.evidence import CANDIDATES, Evidence, MetricResult


def adversarial_accuracy(real: np.ndarray, generated: np.ndarray) -> float:
    """NNAA = (mean 1[d1(a; G) > d1(a; A without a)] + mean 1[d1(g; A) > d1(g; G without g)]) / 2, ties counted half."""
    of_real, of_generated = _own_is_nearer(real, generated), _own_is_nearer(generated, real)
    return float(_accuracy(of_real, of_generated, np.ones((1, len(real))), np.ones((1, len(generated))))[0])


def privacy_loss_figure(evidence: Evidence) -> MetricResult:
    """NNAA(H, G) - NNAA(T, G) with |T| = |H|; interval over resampled patients and generated images."""
    seed, generated = derive_seed(evidence.seed, "adversarial_accuracy"), evidence.generated
    train, heldout = equal_subsamples(evidence.train_patients, evidence.heldout_patients, 1, seed)[0]
    drawn = drawn_counts(len(generated), N_RESAMPLES, np.random.default_rng(derive_seed(seed, "generated")))
    value, resampled = 0.0, np.zeros(N_RESAMPLES)
    for name, rows, sign in (("heldout", heldout, 1), ("train", train, -1)):
        real = getattr(evidence, name)[rows]
        patients = [getattr(evidence, f"{name}_patients")[i] for i in rows]
        nearer = _own_is_nearer(real, generated), _own_is_nearer(generated, real)
        value += sign * float(_accuracy(*nearer, np.ones((1, len(real))), np.ones((1, len(generated))))[0])
        weights = bootstrap_weights(patients, N_RESAMPLES, derive_seed(seed, name))
        resampled += sign * _accuracy(*nearer, weights, drawn)
    low, high = percentile_interval(resampled, value)
    return MetricResult(value, low, high, interval="bootstrap over patients and generated images", baseline=0.0)


def _accuracy(
    of_real: np.ndarray, of_generated: np.ndarray, real_weights: np.ndarray, generated_weights: np.ndarray
) -> np.ndarray:
    """NNAA where the images count as often as the weights (r, n) and (r, m) say; (r,)."""
    real = (real_weights @ of_real) / real_weights.sum(axis=1)
    generated = (generated_weights @ of_generated) / generated_weights.sum(axis=1)
    return np.asarray((real + generated) / 2)


def _own_is_nearer(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Per image, 1 where its own set is nearer than the other, .5 at ties."""
    to_own = nearest(own, own, CANDIDATES)[0][:, 1]  # the first is the image itself, or its equal
    to_other = nearest(other, own, CANDIDATES)[0][:, 0]
    return np.asarray((to_other > to_own) + 0.5 * (to_other == to_own))
