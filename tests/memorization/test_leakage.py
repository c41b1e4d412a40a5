"""The table of measures: it finds copies, leaves honest draws alone, and its page says what the code says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from support.image_makers import directions, evidence_of
from support.paths import REPOSITORY

from common.errors import InputError
from common.roc import area_under_curve
from memorization.leakage.closest_records import closest_record_figure
from memorization.leakage.copying import copying_figure
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.membership import MembershipScores, best_attack, membership_scores
from memorization.leakage.metrics import METRICS, measure_each


@pytest.fixture(scope="module")
def of_copies() -> dict[str, MetricResult]:
    return measure_each(evidence_of(copies=True))


@pytest.fixture(scope="module")
def of_honest_draws() -> dict[str, MetricResult]:
    return measure_each(evidence_of(copies=False))


def test_copies_are_found_by_every_figure(of_copies):
    """Goal P5's figures on a generator that memorized; the other figures leave what an honest one gives, too."""
    assert of_copies["closest-record share"].value > 0.9
    assert of_copies["C_T"].value < -10
    assert of_copies["AuthPct over held-out"].value < -30
    assert of_copies["FLD gap"].value < -1000
    for name in (
        "closest-record share",
        "C_T",
        "AuthPct over held-out",
        "Fréchet gap",
        "membership AUC",
        "membership TPR",
    ):
        assert of_copies[name].p <= 0.01, name
    for name in ("Fréchet gap", "NNAA privacy loss", "membership AUC", "membership TPR"):
        assert of_copies[name].low > 0, name
    assert best_attack(membership_scores(evidence_of(copies=True)), area_under_curve, 0).value > 0.9


def test_honest_draws_are_within_their_intervals(of_honest_draws):
    assert abs(of_honest_draws["C_T"].value) < 3
    for name in ("closest-record share", "C_T", "Fréchet gap", "NNAA privacy loss", "membership AUC", "membership TPR"):
        figure, (ideal,) = of_honest_draws[name], [metric.ideal for metric in METRICS if metric.name == name]
        assert figure.low <= ideal <= figure.high, name
    authentic = of_honest_draws["AuthPct over held-out"]
    assert authentic.low <= 0 <= authentic.high


def test_values_lie_in_their_bounds_and_intervals(of_copies, of_honest_draws):
    for figures in (of_copies, of_honest_draws):
        for metric in METRICS:
            figure = figures[metric.name]
            assert metric.lower <= figure.low <= figure.value <= figure.high <= metric.upper, metric.name


def test_the_safer_direction_is_where_honest_draws_lie(of_copies, of_honest_draws):
    for metric in METRICS[1:]:  # copies of every patient alike expose no single one
        honest, copied = of_honest_draws[metric.name].value, of_copies[metric.name].value
        assert honest > copied if metric.direction == "higher" else honest < copied, metric.name


def test_honest_draws_pass_over_patients_where_the_binomial_test_finds_them_guilty():
    """60 images on each side, 600 generated, some real images nearer to all others than most (16 normal features)."""
    rng = np.random.default_rng(0)
    names = [[f"{side}{i}" for i in range(60)] for side in "th"]
    results = []
    for _ in range(60):
        train, heldout, generated = (rng.normal(size=(n, 16)) / 4 for n in (60, 60, 600))
        results.append(closest_record_figure(Evidence(train, names[0], heldout, names[1], generated)))
    assert np.mean([result.p < 0.05 for result in results]) <= 0.12
    assert np.mean([binomtest(round(600 * result.value), 600).pvalue < 0.05 for result in results]) > 0.2


def test_the_best_of_many_guesses_is_measured_against_the_best_of_as_many_between_members():
    """Six attacks that guess, on 24 members and 12 others: the best looks like an attack until it is compared."""
    rng = np.random.default_rng(0)
    patients, is_member = tuple(f"p{i}" for i in range(36)), np.arange(36) < 24
    guesses = [
        MembershipScores({str(i): rng.normal(size=36) for i in range(6)}, is_member, patients) for _ in range(12)
    ]
    figures = [best_attack(scores, area_under_curve, seed) for seed, scores in enumerate(guesses)]
    assert np.mean([figure.value for figure in figures]) > 0.58
    assert abs(np.mean([figure.value - figure.baseline for figure in figures])) < 0.04
    assert min(figure.p for figure in figures) > 0.01


def test_the_order_of_the_images_changes_nothing():
    rng = np.random.default_rng(1)
    train, heldout, generated = (directions(n, rng) for n in (50, 42, 90))
    patients = np.array([f"t{i // 3}" for i in range(50)]), np.array([f"h{i // 3}" for i in range(42)])
    a, b, c = (rng.permutation(n) for n in (50, 42, 90))
    stored = Evidence(train, patients[0], heldout, patients[1], generated)
    shuffled = Evidence(train[a], patients[0][a], heldout[b], patients[1][b], generated[c])
    first, second = measure_each(stored), measure_each(shuffled)
    for name, figure in first.items():
        assert figure == second[name] or repr(figure) == repr(second[name]), name  # NaN is not NaN


def test_too_few_generated_images_for_the_cells_are_refused_with_the_way_out():
    rng = np.random.default_rng(1)
    sides = [directions(n, rng) for n in (30, 30, 15)]
    names = [[f"{side}{i}" for i in range(30)] for side in "th"]
    with pytest.raises(InputError, match="generate more images"):
        copying_figure(Evidence(sides[0], names[0], sides[1], names[1], sides[2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout_patients": ["t0", "h1"]}, "hold out whole patients"),
        ({"train_patients": ["t0", "t0"]}, "at least two"),
        ({"generated": np.array([[0.0, np.nan], [1, 1]])}, "cannot be embedded"),
        ({"generated": np.zeros((3, 5))}, "two images or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_way_out(changes, message):
    whole = {
        "train": np.eye(2),
        "train_patients": ["t0", "t1"],
        "heldout": -np.eye(2),
        "heldout_patients": ["h0", "h1"],
        "generated": np.eye(2),
    }
    with pytest.raises(InputError, match=message):
        Evidence(**{**whole, **changes})


def test_the_page_shows_the_codes_table():
    page = (REPOSITORY / "docs" / "leakage.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")][2:]
    for row, metric in zip(rows, METRICS, strict=True):
        bounds = f"{metric.lower:g} to {metric.upper:g}".replace("inf", "∞")
        ideal = "depends" if np.isnan(metric.ideal) else f"{metric.ideal:g}"
        assert row[:4] == [metric.name, metric.says, metric.unit, metric.direction]
        assert row[4:] == [bounds, ideal, metric.source, metric.cannot_say]
