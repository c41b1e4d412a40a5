"""Whether a nearest-neighbour rule tells generated images from training images better than from others (Yale 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.bootstrap import drawn_counts, percentile_interval
from common.resampling import N_RESAMPLES, bootstrap_weights, equal_subsamples
from common.seeds import derive_seed
from features.index import nearest
from memorization.leakage.evidence import CANDIDATES, Evidence, MetricResult


@dataclass(frozen=True)
class _Sides:
    """Per image, 1 where its own set is nearer than the other, .5 at ties."""

    of_real: np.ndarray
    of_generated: np.ndarray

    def accuracy(self, real_weights: np.ndarray, generated_weights: np.ndarray) -> np.ndarray:
        """NNAA where the images count as often as the weights (r, n) and (r, m) say; (r,)."""
        real = (real_weights @ self.of_real) / real_weights.sum(axis=1)
        generated = (generated_weights @ self.of_generated) / generated_weights.sum(axis=1)
        return np.asarray((real + generated) / 2)


def adversarial_accuracy(real: np.ndarray, generated: np.ndarray) -> float:
    """NNAA = (mean 1[d1(a; G) > d1(a; A without a)] + mean 1[d1(g; A) > d1(g; G without g)]) / 2, ties counted half."""
    sides = _sides(real, generated)
    return float(sides.accuracy(np.ones((1, len(real))), np.ones((1, len(generated))))[0])


def privacy_loss_figure(evidence: Evidence) -> MetricResult:
    """NNAA(H, G) - NNAA(T, G) with |T| = |H|; interval over resampled patients and generated images."""
    seed = derive_seed(evidence.seed, "adversarial_accuracy")
    train, heldout = equal_subsamples(evidence.train_patients, evidence.heldout_patients, 1, seed)[0]
    of_train = _sides(evidence.train[train], evidence.generated)
    of_heldout = _sides(evidence.heldout[heldout], evidence.generated)
    value = _loss(of_heldout, of_train, *(np.ones((1, n)) for n in (len(heldout), len(train), len(evidence.generated))))
    m = len(evidence.generated)
    resampled = _loss(
        of_heldout,
        of_train,
        bootstrap_weights([evidence.heldout_patients[i] for i in heldout], N_RESAMPLES, derive_seed(seed, "heldout")),
        bootstrap_weights([evidence.train_patients[i] for i in train], N_RESAMPLES, derive_seed(seed, "train")),
        drawn_counts(m, N_RESAMPLES, np.random.default_rng(derive_seed(seed, "generated"))),
    )
    low, high = percentile_interval(resampled, float(value[0]))
    return MetricResult(
        float(value[0]), low, high, interval="bootstrap over patients and generated images", baseline=0.0
    )


def _loss(
    of_heldout: _Sides, of_train: _Sides, heldout: np.ndarray, train: np.ndarray, generated: np.ndarray
) -> np.ndarray:
    return of_heldout.accuracy(heldout, generated) - of_train.accuracy(train, generated)


def _sides(real: np.ndarray, generated: np.ndarray) -> _Sides:
    return _Sides(_own_is_nearer(real, generated), _own_is_nearer(generated, real))


def _own_is_nearer(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    to_own = nearest(own, own, CANDIDATES)[0][:, 1]  # the first is the image itself, or its equal
    to_other = nearest(other, own, CANDIDATES)[0][:, 0]
    return np.asarray((to_other > to_own) + 0.5 * (to_other == to_own))
