"""Epsilon against figures of another accountant, and how it must move."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from gan.accountant import ORDERS, epsilon_after, noise_for, rdp_of_a_step

# Opacus 1.6.0, with ORDERS of gan/accountant.py:
#     from opacus.accountants.analysis import rdp
#     spent = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=list(ORDERS))
#     rdp.get_privacy_spent(orders=list(ORDERS), rdp=spent, delta=delta)[0]
GOLDEN = [
    (1, 1.0, 0.01, 1e-5, 0.9555491477031676),
    (1000, 1.1, 0.01, 1e-5, 1.7117700912203435),
    (25000, 4.0, 0.04, 5e-4, 6.691535996997404),
    (3000, 0.6, 0.002, 1e-4, 3.0767558678357005),
    (500, 20.0, 1.0, 1e-3, 4.052804900168968),
    (200, 0.3, 0.05, 1e-3, 83.43371547353853),
    (100000, 60.0, 0.2, 1e-5, 5.024746030281539),
    (2000, 2.5, 0.3, 4.3e-3, 31.756863855074037),
]
# dp-accounting 0.6.0, whole orders (its fractional ones are left out where their series is slow):
#     accountant = dp_accounting.rdp.RdpAccountant(orders)
#     event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
#     accountant.compose(event, 1)._rdp
GOLDEN_DIVERGENCES = [
    (1.1, 0.01, 2.0, 0.00012851008160516542),
    (1.1, 0.01, 8.0, 0.0005840703355202598),
    (1.1, 0.01, 64.0, 21.768012866287314),
    (2.5, 0.3, 2.0, 0.01549530367978702),
    (2.5, 0.3, 8.0, 0.08010243802874761),
    (2.5, 0.3, 64.0, 3.8970159053681663),
    (0.3, 0.05, 2.0, 5.125592044624938),
    (0.3, 0.05, 8.0, 41.020750417525605),
    (0.3, 0.05, 64.0, 352.51227197607216),
    (20.0, 1.0, 2.0, 0.0025),
    (20.0, 1.0, 8.0, 0.01),
    (20.0, 1.0, 64.0, 0.08),
]


@pytest.mark.parametrize("n_steps,noise,rate,delta,expected", GOLDEN)
def test_epsilon_is_that_of_opacus(n_steps: int, noise: float, rate: float, delta: float, expected: float) -> None:
    assert epsilon_after(n_steps, noise, rate, delta) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("noise,rate,order,expected", GOLDEN_DIVERGENCES)
def test_a_steps_divergence_is_that_of_dp_accounting(noise: float, rate: float, order: float, expected: float) -> None:
    assert rdp_of_a_step(order, noise, rate) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("order,noise,rate", [(1.5, 1.0, 0.1), (4.0, 0.7, 0.01), (9.3, 3.0, 0.5), (2.0, 0.3, 0.2)])
def test_a_steps_divergence_bounds_both_directions_of_the_definition(order: float, noise: float, rate: float) -> None:
    """The two integrals of the definition, by adaptive quadrature: with the image over without, and the reverse."""
    base, moved = stats.norm(0, noise).logpdf, stats.norm(1, noise).logpdf

    def mixed(z: float) -> float:
        return float(np.logaddexp(math.log1p(-rate) + base(z), math.log(rate) + moved(z)))

    def divergence(p, q) -> float:
        def integrand(z: float) -> float:
            return math.exp(order * p(z) + (1 - order) * q(z))

        value, _ = integrate.quad(integrand, -10 * noise, order + 10 * noise, limit=500)
        return math.log(value) / (order - 1)

    assert rdp_of_a_step(order, noise, rate) == pytest.approx(divergence(mixed, base), rel=1e-6)
    assert divergence(base, mixed) <= rdp_of_a_step(order, noise, rate) * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.4, 20), st.floats(0.001, 0.9), st.integers(1, 5000), st.floats(1e-7, 0.1))
def test_epsilon_grows_with_steps_and_sampling_and_falls_with_noise_and_delta(
    noise: float, rate: float, n_steps: int, delta: float
) -> None:
    epsilon = epsilon_after(n_steps, noise, rate, delta)
    assert 0 <= epsilon <= epsilon_after(2 * n_steps, noise, rate, delta) + 1e-9
    assert epsilon <= epsilon_after(n_steps, noise, min(1.0, 1.1 * rate), delta) + 1e-9
    assert epsilon >= epsilon_after(n_steps, 1.1 * noise, rate, delta) - 1e-9
    assert epsilon >= epsilon_after(n_steps, noise, rate, 2 * delta) - 1e-9
    assert epsilon_after(0, noise, rate, delta) == 0


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0, 50.0])
def test_the_noise_spends_nearly_all_of_epsilon_and_never_more(epsilon: float) -> None:
    spent = epsilon_after(2000, noise_for(epsilon, 1e-3, 0.05, 2000), 0.05, 1e-3)
    assert 0.99 * epsilon < spent <= epsilon


def test_an_epsilon_that_no_noise_reaches_is_an_error() -> None:
    with pytest.raises(ValueError, match="out of reach"):
        noise_for(1e-6, 1e-6, 1.0, 10**6)
    assert max(ORDERS) == 512  # what limits it
