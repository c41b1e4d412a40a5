"""Distances between sets of images against closed forms and naive loops, and what their intervals mean."""

from __future__ import annotations

import numpy as np
import pytest

from features.fidelity import (
    frechet_distance,
    frechet_distance_of_moments,
    frechet_interval,
    kernel_distance,
    kernel_interval,
)


def standard(n: int, d: int, seed: int = 0) -> np.ndarray:
    """(n, d) features whose sample mean is 0 and sample covariance the identity, exactly."""
    normal = np.random.default_rng(seed).standard_normal((n, d))
    return np.linalg.qr(normal - normal.mean(axis=0))[0] * np.sqrt(n - 1)


@pytest.mark.parametrize("n", [7, 200])
def test_frechet_distance_of_known_gaussians_is_the_closed_form(n: int) -> None:
    """Commuting covariances: |m|^2 + the squared differences of standard deviations."""
    d = 5
    spread, shift = np.array([1.0, 2.0, 0.5, 3.0, 0.0]), np.array([0.3, -1.0, 0.0, 2.0, 0.1])
    expected = np.square(shift).sum() + np.square(spread - 1).sum()
    a, b = standard(n, d), standard(n + 9, d, 1) * spread + shift
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_moments(np.zeros(d), np.eye(d), shift, np.diag(spread**2)) == pytest.approx(expected)


def test_features_and_moments_agree_also_with_fewer_images_than_features() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 40)), rng.standard_normal((9, 40)) @ rng.standard_normal((40, 40)) + 1
    moments = [(x.mean(axis=0), np.cov(x.T)) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance_of_moments(*moments[0], *moments[1]), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a[:1], a[:1] + 2) == pytest.approx(160)


def test_kernel_distance_is_that_of_a_naive_double_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)) + 0.5

    def mean_kernel(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        values = [(p @ q / 3 + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if not (same and i == j)]
        return float(np.mean(values))

    expected = mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_of_two_samples_of_one_distribution_is_0_on_average() -> None:
    """The Fréchet distance of the same samples is far from 0: what few images do to it."""
    rng = np.random.default_rng(0)
    pairs = [rng.standard_normal((2, 12, 8)) for _ in range(400)]
    values = np.array([kernel_distance(*pair) for pair in pairs])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values)) and (values < 0).any()
    assert np.mean([frechet_distance(*pair) for pair in pairs[:20]]) > 1


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth = kernel_distance(rng.standard_normal((3000, 4)), rng.standard_normal((3000, 4)) + 0.7)
    intervals = [
        kernel_interval(rng.standard_normal((60, 4)), rng.standard_normal((50, 4)) + 0.7, seed) for seed in range(60)
    ]
    assert 0.85 <= np.mean([one.low <= truth <= one.high for one in intervals]) <= 1
    spread = np.std([one.value for one in intervals])
    assert np.mean([one.standard_error for one in intervals]) == pytest.approx(spread, rel=0.3)


def test_intervals_repeat_by_seed_hold_their_estimate_and_widen_where_patients_have_many_images() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 4))
    b = np.repeat(rng.standard_normal((8, 4)), 5, axis=0) + 0.01 * rng.standard_normal((40, 4))
    owners = [str(i // 5) for i in range(40)]
    for interval, distance in ((frechet_interval, frechet_distance), (kernel_interval, kernel_distance)):
        one = interval(a, b, 3)
        assert one == interval(a, b, 3) and one.value == pytest.approx(distance(a, b))
        assert one.low < one.value < one.high
        assert interval(a, b, 3, owners_b=owners).standard_error > 1.2 * one.standard_error
        assert interval(b, a, 3, owners_a=owners).standard_error > 1.2 * interval(b, a, 3).standard_error


def test_kernel_distance_is_unbiased_also_where_patients_have_several_images() -> None:
    """Pairs within a patient would make a set look far from one of the same patients' kind."""
    rng = np.random.default_rng(0)
    owners = [str(i // 4) for i in range(32)]
    samples = [rng.standard_normal((20, 6)) for _ in range(300)]
    clustered = [np.repeat(rng.standard_normal((8, 6)), 4, axis=0) for _ in range(300)]
    values = [kernel_distance(a, b, owners) for a, b in zip(samples, clustered, strict=True)]
    naive = [kernel_distance(a, b) for a, b in zip(samples, clustered, strict=True)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error and np.mean(naive) > 5 * error
