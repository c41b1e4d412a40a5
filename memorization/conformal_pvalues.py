"""Several statistics of likeness fused into one p-value with a finite-sample guarantee.

Every statistic is measured in spreads above its median, and an image's score is the sum of their sixth powers, which is
little more than the largest one alone: an image that one statistic tells is found, and which of many images near the
line lies beyond it depends less on a single statistic of a single calibration image. Median and spread are taken over
the calibration images *and* the image in question (full conformal prediction, Vovk et al. 2005, ch. 2), so that the
score treats all of them alike: if the image is exchangeable with the calibration images, P(p <= a) <= a for every a,
however many statistics there are and however they depend on each other.

What is exchangeable is patients: where they have several images each, the guarantee is that of as many calibration
images as there are patients, and a rate measured at one site spreads the more (docs/results/filter.md).

A smallest or Bonferroni-corrected p over the statistics has the same guarantee and no power at a small site: with 30
images no single p is below 1/31, so no corrected one below 23/31.
"""

from __future__ import annotations

import numpy as np

POWER = 6  # of 1 to infinity, the sum to the largest: measured on planted copies in docs/results/filter.md
SAME_SCORE = 1e-9  # relative: what rounding may make of two equal scores
SPREAD_AT = 0.97  # the spread is from the median to this quantile, about where it is decided: a heavy tail of one
# statistic would otherwise hide what the others see
LEAST_SPREAD = 1e-3
BLOCK = 256  # queries at once


def p_values(calibration: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(m,) of ``queries`` (m, s) among ``calibration`` (n, s), honest images; larger statistics mean more alike."""
    scores = [_p_values(calibration, queries[start : start + BLOCK]) for start in range(0, len(queries), BLOCK)]
    return np.concatenate(scores) if scores else np.zeros(0)


def dropped_of_calibration(calibration: np.ndarray, patients: np.ndarray, level: float) -> np.ndarray:
    """(n,) which calibration images (n, s) would be dropped, each judged by the calibration on the other patients.

    An image that calibrates its own judge is never the most alike of all, so that too few would be dropped.
    """
    dropped = np.zeros(len(calibration), bool)
    for patient in np.unique(patients):
        own = patients == patient
        others = calibration[~own]
        if len(others):
            dropped[own] = p_values(others, calibration[own]) <= attainable_level(level, len(others))
    return dropped


def deciding_statistic(calibration: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(m,) which statistic has most of each query's score."""
    median, spread = _median_and_spread(calibration, queries)
    return np.asarray(((queries - median) / spread).argmax(axis=1))


def fused_scores(calibration: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(m,) the root of the scores, in spreads above the median; for drawing and for curves, not for deciding."""
    median, spread = _median_and_spread(calibration, queries)
    return np.asarray(_score(queries, median, spread) ** (1 / POWER))


def attainable_level(level: float, n_calibration: int) -> float:
    """The level itself, or the smallest p there is: below ``1 / (n + 1)`` nothing at all would ever be dropped."""
    return max(level, 1 / (n_calibration + 1))


def _p_values(calibration: np.ndarray, queries: np.ndarray) -> np.ndarray:
    median, spread = _median_and_spread(calibration, queries)
    own = _score(queries, median, spread)
    others = _score(calibration[None], median[:, None], spread[:, None])
    # ties count: a copy is not less of one for having company
    as_alike = (others >= (1 - SAME_SCORE) * own[:, None]).sum(axis=1)
    return np.asarray((1 + as_alike) / (1 + len(calibration)))


def _score(values: np.ndarray, median: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(...,) of values (..., s); statistic by statistic, as all at once would take s times the memory."""
    score = np.zeros(np.broadcast_shapes(values.shape, median.shape)[:-1])
    for column in range(values.shape[-1]):
        above = np.maximum((values[..., column] - median[..., column]) / spread[..., column], 0)
        score += above**POWER
    return score


def _median_and_spread(calibration: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, s) each: order statistics of the calibration images with the query among them."""
    ordered = np.sort(calibration, axis=0)
    median = _order_statistic(ordered, queries, 0.5)
    return median, np.maximum(_order_statistic(ordered, queries, SPREAD_AT) - median, LEAST_SPREAD)


def _order_statistic(ordered: np.ndarray, queries: np.ndarray, quantile: float) -> np.ndarray:
    """The smallest of ``n + 1`` values with at least this share at or below it, the last value being the query's.

    Never the largest: at a small site a copy would be its own measure, and no copy would stand out.
    """
    n = len(ordered)
    rank = max(1, min(n, int(np.ceil(quantile * (n + 1) - 1e-9))))
    low = ordered[rank - 2] if rank >= 2 else np.full(ordered.shape[1], -np.inf)
    return np.clip(queries, low, ordered[rank - 1])
