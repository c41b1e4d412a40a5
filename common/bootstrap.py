"""Bootstrap: what is drawn, and the interval that follows."""

from __future__ import annotations

import numpy as np


def drawn_counts(n_units: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``n_units`` is drawn when as many are drawn with replacement; (n_resamples, n_units)."""
    return np.asarray(rng.multinomial(n_units, np.full(n_units, 1 / n_units), n_resamples))


def percentile_interval(resampled: np.ndarray, centre: float) -> tuple[float, float]:
    """The middle 95 % of the resampled values, moved so that their mean is ``centre``."""
    low, high = np.percentile(resampled - resampled.mean() + centre, (2.5, 97.5))
    return float(low), float(high)
