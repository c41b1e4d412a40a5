"""The fused p-value: its guarantee holds for any numbers, and each known flaw put back breaks a test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from memorization.filter import (
    attainable_level,
    deciding_statistic,
    dropped_of_calibration,
    fused_scores,
    p_values,
)

VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, width=32))
TABLES = st.tuples(st.integers(3, 25), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=VALUES)
)


def _left_out(table: np.ndarray) -> np.ndarray:
    """Every row's p among the others."""
    rows = range(len(table))
    return np.array([p_values(np.delete(table, row, axis=0), table[row : row + 1])[0] for row in rows])


@given(TABLES, st.floats(0.01, 1))
def test_at_most_the_level_of_exchangeable_images_is_dropped_whatever_their_values(
    table: np.ndarray, level: float
) -> None:
    assert np.mean(_left_out(table) <= level) <= level + 1e-12


@given(TABLES)
def test_the_p_value_is_the_rank_by_brute_force(table: np.ndarray) -> None:
    honest, query = table[:-1], table[-1]
    together = np.sort(table, axis=0)
    n = len(table)
    median = together[int(np.ceil(0.5 * n - 1e-9)) - 1]
    spread = np.maximum(together[min(n - 1, int(np.ceil(0.97 * n - 1e-9))) - 1] - median, 1e-3)

    def score(row: np.ndarray) -> float:
        return float(sum(max(above, 0.0) ** 6 for above in (row - median) / spread))

    as_alike = sum(score(row) >= (1 - 1e-9) * score(query) for row in honest)  # equal but for rounding is equal
    expected = (1 + as_alike) / n
    assert p_values(honest, table[-1:])[0] == pytest.approx(expected)


def test_the_order_of_images_and_of_queries_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    honest, queries = rng.standard_normal((40, 5)), rng.standard_normal((30, 5))
    shuffled, turned = rng.permutation(40), rng.permutation(30)
    assert np.array_equal(p_values(honest[shuffled], queries[turned]), p_values(honest, queries)[turned])


def test_units_of_a_statistic_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    honest, queries = rng.standard_normal((40, 3)), rng.standard_normal((30, 3))
    factor, offset = np.array([10.0, 0.5, 3.0]), np.array([5.0, -2.0, 0.0])
    assert np.array_equal(p_values(honest * factor + offset, queries * factor + offset), p_values(honest, queries))


def test_a_tie_with_the_most_alike_honest_image_still_counts_as_alike() -> None:
    """With a strict comparison a site of 19 images with one duplicate pair would drop nothing at 5 %."""
    honest = np.linspace(0, 1, 19)[:, None]
    copy = np.array([[50.0]])
    assert p_values(honest, copy)[0] == 1 / 20
    assert p_values(honest, copy)[0] <= attainable_level(0.05, 19)


def test_a_site_too_small_for_its_level_still_drops_what_is_more_alike_than_every_real_pair() -> None:
    honest = np.linspace(0, 1, 8)[:, None]
    assert attainable_level(0.05, 8) == pytest.approx(1 / 9)
    assert p_values(honest, np.array([[9.0]]))[0] <= attainable_level(0.05, 8)
    assert p_values(honest, np.array([[0.5]]))[0] > attainable_level(0.05, 8)


def test_an_honest_image_at_the_level_itself_counts_as_dropped() -> None:
    patients = np.array([f"p{i}" for i in range(20)])
    assert dropped_of_calibration(np.arange(20.0)[:, None], patients, 0.05).tolist() == 19 * [False] + [True]


def test_a_copy_stands_out_at_a_site_of_a_handful_of_images() -> None:
    """It must not be its own measure of spread."""
    honest = np.array([[0.0, 5.0], [1.0, 4.0], [2.0, 6.0], [3.0, 7.0]])
    assert p_values(honest, np.array([[90.0, 80.0]]))[0] == 1 / 5


def test_what_many_statistics_tell_is_found_beside_an_honest_image_that_is_alike_in_one() -> None:
    """By the largest statistic alone the honest image with the heaviest single one would decide for everybody."""
    rng = np.random.default_rng(3)
    honest = rng.standard_normal((60, 20))
    honest[0, 4] = 1.25 * honest.max()
    looser_copy = np.full((1, 20), 1.25 * np.quantile(honest, 0.97))
    spreads = np.quantile(honest, 0.97, axis=0) - np.median(honest, axis=0)
    assert (looser_copy / spreads).max() < honest[0, 4] / spreads[4]
    assert p_values(honest, looser_copy)[0] == 1 / 61


def test_one_telling_statistic_is_enough_among_many_that_say_nothing() -> None:
    rng = np.random.default_rng(2)
    honest = rng.standard_normal((60, 20))
    copy = rng.standard_normal((1, 20))
    copy[0, 7] = 15.0
    assert p_values(honest, copy)[0] == 1 / 61
    assert deciding_statistic(honest, copy)[0] == 7
    assert fused_scores(honest, copy)[0] > 5
