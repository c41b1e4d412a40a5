"""Epsilon against figures of another accountant, and how it must move."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

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
# dp-accounting 0.6.0's accountant of privacy-loss distributions: python -m studies.accountant_comparison
GOLDEN_TOGETHER = [
    (6000, 4.43, 0.016, 1e-4, 1, 0.901),
    (6000, 4.43, 0.016, 1e-4, 2, 1.974),
    (6000, 4.43, 0.016, 1e-4, 5, 5.820),
    (6000, 0.983, 0.016, 1e-4, 2, 17.660),
    (6000, 0.983, 0.016, 1e-4, 5, 64.749),
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


@pytest.mark.parametrize("n_steps,noise,rate,delta,n_units,expected", GOLDEN_TOGETHER)
def test_epsilon_of_several_units_is_little_above_that_of_their_loss_distribution(
    n_steps: int, noise: float, rate: float, delta: float, n_units: int, expected: float
) -> None:
    """And, both ways, above what one unit's epsilon times their number would be."""
    found, alone = epsilon_after(n_steps, noise, rate, delta, n_units), epsilon_after(n_steps, noise, rate, delta)
    assert expected < found < 1.12 * expected
    of_one = {4.43: 0.901, 0.983: 7.265}[noise]
    assert n_units == 1 or (expected > n_units * of_one and found > n_units * alone)


def test_k_units_have_more_than_k_times_epsilon_already_in_one_step_of_all_images() -> None:
    """The exact Gaussian mechanism (Balle and Wang 2018, theorem 8), and its divergence at k clipping norms."""

    def delta_at(epsilon: float, distance: float) -> float:
        return stats.norm.cdf(distance / 2 - epsilon / distance) - math.exp(epsilon) * stats.norm.cdf(
            -distance / 2 - epsilon / distance
        )

    delta = delta_at(1.0, 0.3)
    assert delta_at(5 * 1.0, 5 * 0.3) > 20 * delta
    assert rdp_of_a_step(4.0, 1 / 0.3, 1.0, 5) == pytest.approx(4.0 * (5 * 0.3) ** 2 / 2)
    assert rdp_of_a_step(4.0, 1 / 0.3, 1 - 1e-12, 5) == pytest.approx(4.0 * (5 * 0.3) ** 2 / 2, rel=1e-6)


@pytest.mark.parametrize("order,noise,rate,n_units", [(2.0, 1.0, 0.2, 3), (4.5, 0.8, 0.05, 2), (1.5, 3.0, 0.6, 4)])
def test_a_steps_divergence_of_several_units_is_the_larger_of_both_directions(
    order: float, noise: float, rate: float, n_units: int
) -> None:
    chances = stats.binom.pmf(range(n_units + 1), n_units, rate)

    def mixed(z: float) -> float:
        logarithms = [stats.norm.logpdf(z, j, noise) for j in range(n_units + 1)]
        return float(special.logsumexp(logarithms, b=chances))

    def base(z: float) -> float:
        return float(stats.norm.logpdf(z, 0, noise))

    def divergence(p, q) -> float:
        low, high = -9 * noise, n_units * order + 9 * noise
        value, _ = integrate.quad(lambda z: math.exp(order * p(z) + (1 - order) * q(z)), low, high, limit=500)
        return math.log(value) / (order - 1)

    expected = max(divergence(mixed, base), divergence(base, mixed))
    assert rdp_of_a_step(order, noise, rate, n_units) == pytest.approx(expected, rel=1e-5)


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
