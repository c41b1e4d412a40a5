"""Areas and rates of scores that count with weights, so that resampled and relabelled images cost one sum each."""

from __future__ import annotations

import numpy as np

FPR = 0.01


def levels_of(scores: np.ndarray) -> np.ndarray:
    """Rank of each score (n,) among the different ones, from 0; equal scores share one."""
    return np.asarray(np.unique(scores, return_inverse=True)[1])


def area_under_curve(levels: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """P(score of a positive > of a negative) + P(equal) / 2 under weights (n,) of both sides: Mann-Whitney's U / nm."""
    positives, negatives = _by_level(levels, positive, negative)
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / (positives.sum() * negatives.sum()))


def true_positive_rate(levels: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """Largest share of positives above a threshold that at most 1 % of the negatives reach (Carlini et al. 2022)."""
    positives, negatives = _by_level(levels, positive, negative)
    reached = np.cumsum(negatives[::-1])[::-1]
    return float(positives[reached <= FPR * negatives.sum() + 1e-12].sum() / positives.sum())


def _by_level(levels: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = int(levels.max()) + 1
    return np.bincount(levels, positive, size), np.bincount(levels, negative, size)
