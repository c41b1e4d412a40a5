"""What a private training has spent: Rényi differential privacy of the Gaussian mechanism on Poisson-sampled images.

Two data sets are neighbours if one of them has one image more. The accountant is written here because it is one
integral: Opacus would add a second way of training, Google's dp-accounting a compiled package. Opacus agrees to 1e-6,
dp-accounting too at whole orders (``tests/gan/test_accountant.py``). An accountant of privacy-loss distributions would
find an epsilon about a tenth smaller; this one is an upper bound.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

# of Rényi divergences; the smallest epsilon over them counts
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *map(float, range(11, 64)), 64.0, 96.0, 128.0, 256.0, 512.0)
POINTS_PER_DEVIATION = 16  # of the integrand's narrowest part; its error falls exponentially in them
TAIL_DEVIATIONS = 14.0  # on both sides: exp(-98)
SMALLEST_NOISE, LARGEST_NOISE = 0.2, 1e6


def epsilon_after(n_steps: int, noise_multiplier: float, sampling_rate: float, delta: float, n_units: int = 1) -> float:
    """Epsilon of ``n_steps`` compositions at ``delta``; conversion of Canonne, Kamath, Steinke 2020 (Proposition 12).

    Args:
        noise_multiplier: standard deviation of the noise over the clipping norm, above 0.
        sampling_rate: with which every unit is taken into a step by itself, 0 to 1.
        n_units: that are added or removed together, such as the images of a patient where the unit is an image.
    """
    if n_steps == 0 or sampling_rate == 0:
        return 0.0
    smallest = math.inf
    for order in ORDERS:
        spent = n_steps * rdp_of_a_step(order, noise_multiplier, sampling_rate, n_units)
        # divergences grow with the order: from here on no epsilon can be smaller
        if spent + math.log1p(-1 / order) > smallest:
            break
        smallest = min(smallest, spent + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return max(0.0, smallest)


def rdp_of_a_step(order: float, noise_multiplier: float, sampling_rate: float, n_units: int = 1) -> float:
    """Rényi divergence of ``order`` > 1 of one step, the larger of the two directions.

    One unit (Mironov, Talwar, Zhang 2019, section 3.3): ``log E_z[((1 - q) + q exp((2 z - 1) / (2 s^2)))^order] /
    (order - 1)`` over z of N(0, s^2), for real orders too; the divergence the other way round is no larger. Of k units
    a step takes j with the binomial probability, and their clipped gradients add up to j clipping norms at most: a
    mixture of N(j, s^2) against N(0, s^2) (Choquette-Choo et al. 2024, "Privacy amplification for matrix mechanisms",
    section 4), in both directions. The integrand is analytic and falls like a Gaussian, so that equidistant sums
    converge exponentially.
    """
    variance = noise_multiplier**2
    if sampling_rate == 1:
        return order * n_units**2 / (2 * variance)
    step = noise_multiplier / POINTS_PER_DEVIATION
    reach = TAIL_DEVIATIONS * noise_multiplier
    z = np.arange(-reach, n_units * order + reach, step)
    log_density = -(z**2) / (2 * variance) - math.log(noise_multiplier * math.sqrt(2 * math.pi))
    log_ratio = np.full_like(z, n_units * math.log1p(-sampling_rate))
    for j in range(1, n_units + 1):
        log_chosen = math.lgamma(n_units + 1) - math.lgamma(j + 1) - math.lgamma(n_units - j + 1)
        log_chosen += j * math.log(sampling_rate) + (n_units - j) * math.log1p(-sampling_rate)
        log_ratio = np.logaddexp(log_ratio, log_chosen + (2 * j * z - j**2) / (2 * variance))
    powers = [order] if n_units == 1 else [order, 1 - order]
    largest = max(_log_sum(log_density + power * log_ratio) for power in powers)
    return max(0.0, largest + math.log(step)) / (order - 1)


def _log_sum(terms: np.ndarray) -> float:
    largest = float(terms.max())
    return largest + math.log(float(np.exp(terms - largest).sum()))


@lru_cache
def noise_for(epsilon: float, delta: float, sampling_rate: float, n_steps: int) -> float:
    """The least noise multiplier, within a thousandth and from ``SMALLEST_NOISE`` on, for at most ``epsilon``.

    Raises:
        ValueError: no noise of up to ``LARGEST_NOISE`` is enough.
    """
    low, high = SMALLEST_NOISE, SMALLEST_NOISE
    while epsilon_after(n_steps, high, sampling_rate, delta) > epsilon:
        low, high = high, 2 * high
        if high > LARGEST_NOISE:
            raise ValueError(f"epsilon {epsilon:g} at delta {delta:g} is out of reach of {n_steps} steps")
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_after(n_steps, middle, sampling_rate, delta) > epsilon else (low, middle)
    return high
