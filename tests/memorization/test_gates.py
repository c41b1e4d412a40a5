"""Gates: each refuses copies, together they let honest sites pass, and without evidence nobody does."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from support.image_makers import evidence_of

from dataset.enough_patients import TESTS
from memorization.gates import (
    EVIDENCE,
    FAILED,
    GATES,
    LEAKAGE_GATES,
    NOT_MEASURABLE,
    PASSED,
    PASSED_IN_PART,
    PLANTED_RECALL,
    AuditedFigures,
    Gate,
    GatesConfig,
    PlantedRecall,
    judge,
    planted_recall,
)
from memorization.leakage.evidence import Evidence
from memorization.leakage.membership import membership_scores
from memorization.leakage.metrics import METRICS, measure_each
from memorization.site_audit import AuditImages, audit, write_audit


def figures_of(copies: bool) -> AuditedFigures:
    return AuditedFigures(1000, 100, 150, 150, measure_each(evidence_of(copies)))


@pytest.fixture(scope="module")
def of_copies() -> AuditedFigures:
    return figures_of(copies=True)


@pytest.fixture(scope="module")
def of_honest_draws() -> AuditedFigures:
    return figures_of(copies=False)


@pytest.mark.parametrize("gate", LEAKAGE_GATES, ids=lambda gate: gate.name)
def test_each_leakage_gate_refuses_copies_and_passes_honest_draws(gate, of_copies, of_honest_draws):
    refused, passed = (
        {one.name: one for one in judge(figures, GatesConfig())}[gate.name] for figures in (of_copies, of_honest_draws)
    )
    assert refused.failed and refused.p <= refused.level and "beyond its limit" in refused.reason
    assert "train.gan.kimg" in refused.what_would_help
    assert passed.decision == PASSED and not passed.what_would_help


def test_a_figure_within_its_limit_passes_whatever_its_p(of_copies):
    """A large site would otherwise be refused for what is too small to matter."""
    lenient = GatesConfig(min_c_t=-1e6, max_membership_auc=1.0, max_closest_record_share=1.0)
    decided = {gate.name: gate.decision for gate in judge(of_copies, lenient)}
    assert {decided[name] for name in ("C_T", "membership AUC", "closest-record share")} == {PASSED}
    assert decided["AuthPct over held-out"] == FAILED


def test_more_than_half_dropped_is_refused(of_honest_draws):
    many = AuditedFigures(1000, 501, 150, 150, of_honest_draws.leakage)
    failed = [gate for gate in judge(many, GatesConfig()) if gate.failed]
    assert [gate.name for gate in failed] == ["dropped share"] and "501 of 1000" in failed[0].reason
    assert not any(gate.failed for gate in judge(AuditedFigures(1000, 500, 150, 150, many.leakage), GatesConfig()))


def found(n_found: int, n: int = 65, mean_recall: float | None = None) -> Gate:
    """The gate on ``n_found`` of ``n`` copies, by default with that share in every kind."""
    recall = n_found / n if mean_recall is None else mean_recall
    missed = ("mirrored, turned, darker", "cropped, blurred, noisy", "shifted, flatter, jpeg", "quarter turns", "blur")
    figures = AuditedFigures(1000, 100, 150, 150, {}, PlantedRecall(n, n_found, recall, missed, 0.1))
    return planted_recall(figures, GatesConfig())


def test_a_filter_that_misses_planted_copies_is_refused_once_chance_does_not_explain_it():
    """The upper Clopper-Pearson ends are 0.889 for 52 of 65 and 0.901 for 53, on either side of the limit 0.9."""
    assert found(52).failed and found(53).decision == PASSED
    assert found(5350, 6500).failed, "with a hundred times the copies the same share is told from 0.9"
    refused = found(30, mean_recall=0.41)
    assert refused.value == 0.41 and "30 of 65 planted copies found (0.34 to 0.59)" in refused.reason
    assert refused.reason.endswith("; cropped, blurred, noisy; shifted, flatter, jpeg; quarter turns")
    assert "memorization=offline" in refused.what_would_help
    assert max(len(refused.reason), len(refused.what_would_help)) <= 200, "a longer text is refused by its receiver"


def test_a_mean_recall_over_kinds_within_its_limit_passes_whatever_the_pooled_count():
    """Kinds with many strengths must not decide alone."""
    assert found(40, mean_recall=0.9).decision == PASSED and found(40, mean_recall=0.89).failed


def test_without_planted_copies_the_gate_is_not_measurable_and_nowhere_passed(of_honest_draws):
    gates = {gate.name: gate for gate in judge(of_honest_draws, GatesConfig())}
    assert gates[PLANTED_RECALL].decision == NOT_MEASURABLE and not gates[PLANTED_RECALL].is_measured
    assert "gates.n_planted_copies=0" in gates[PLANTED_RECALL].reason
    assert "gates.n_planted_copies=1" in gates[PLANTED_RECALL].what_would_help
    assert gates[EVIDENCE].value == len(LEAKAGE_GATES)


def test_gates_have_the_names_that_a_package_may_hold(of_honest_draws):
    judged = [(gate.name, gate.unit, gate.comparison) for gate in judge(of_honest_draws, GatesConfig())]
    assert judged == [(kind.name, kind.unit, kind.comparison) for kind in GATES]


def small_site(n_heldout: int, seed: int = 0, n_train: int = 12, copies: bool = False) -> AuditImages:
    """Two images a patient, unit vectors in eight dimensions around a common direction; some other honest ones."""
    rng = np.random.default_rng(seed)
    sides = [rng.normal(size=(2 * n, 8)) / 3 + np.eye(8)[0] for n in (n_train, n_heldout, 60)]
    train, heldout, generated = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    if copies:
        generated = np.tile(train, (5, 1)) + 1e-3 * rng.normal(size=(10 * n_train, 8))
    names = [[f"{side}{i // 2}" for i in range(2 * n)] for side, n in (("t", n_train), ("h", n_heldout))]
    return AuditImages(train, names[0], heldout, names[1], generated)


def gates_of(images: AuditImages, config: GatesConfig = GatesConfig()) -> dict[str, Gate]:  # noqa: B008
    result = audit(images, 2 * len(images.kept), config, seed=0).audit
    return {gate.name: gate for gate in result.gates}


def test_without_heldout_patients_a_site_is_refused_with_the_way_out():
    gates = gates_of(small_site(0))
    assert [name for name, gate in gates.items() if gate.failed] == [EVIDENCE]
    assert {gates[kind.name].decision for kind in LEAKAGE_GATES} == {NOT_MEASURABLE}
    assert "no held-out patients" in gates[EVIDENCE].reason
    assert "generator.train_on=train" in gates[EVIDENCE].what_would_help


def test_so_few_patients_that_no_p_can_be_small_are_no_evidence():
    """3 + 2 patients have ten labellings: p is 0.1 at best, for copies as well."""
    gates = gates_of(small_site(2, n_train=3, copies=True))
    assert gates[EVIDENCE].failed and not gates["C_T"].is_measured
    assert "p is about 0.1 at best" in gates["closest-record share"].reason


def test_a_site_of_sixteen_patients_is_refused_for_copies():
    """As many as the demo has. The membership test, with a reference of its own, has too few, and not all see it."""
    gates = gates_of(small_site(4, copies=True))
    assert gates["closest-record share"].failed and gates["FLD gap"].failed
    assert not gates["membership AUC"].is_measured


def test_not_enforced_the_verdict_says_what_failed():
    result = audit(small_site(0), 120, GatesConfig(enforce=False), seed=0).audit
    assert result.verdict == "failed, not enforced" and [gate.name for gate in result.failed] == [EVIDENCE]


def test_ten_patients_are_enough_to_refuse_copies_where_six_tests_at_a_sixth_of_the_level_could_not():
    """6 + 2 patients have 28 labellings: p is about 0.037 at best, above 0.05 / 6, and below 0.05 for a single test."""
    gates = gates_of(small_site(2, n_train=6, copies=True))
    assert gates["closest-record share"].failed and gates["closest-record share"].level == 0.05
    assert gates[EVIDENCE].value == 1.0 and gates[EVIDENCE].decision == PASSED
    assert sum(gate.decision == NOT_MEASURABLE for gate in gates.values()) == 6  # five of leakage; none were planted


def test_a_gate_and_its_figure_say_the_same_number_in_the_same_unit():
    """AuthPct stood as 100 among the figures and as 16.67 among the gates."""
    result = audit(small_site(4), 120, GatesConfig(), seed=0).audit
    figures = {figure.name: figure for figure in result.figures}
    assert [figure.unit for figure in result.figures] == [metric.unit for metric in METRICS]
    for gate in result.gates:
        if gate.name in figures and gate.is_measured:
            of = figures[gate.name]
            assert (gate.value, gate.p, gate.unit) == (of.value, of.p, of.unit), gate.name
            assert gate.comparison == ("<=" if of.safer == "lower" else ">=")
    assert not all(gate.is_measured for gate in result.gates)  # and so the site has not simply passed
    assert not result.failed and result.verdict == PASSED_IN_PART


def test_membership_exchanges_the_patients_that_its_attack_sees():
    """One half of the held-out patients is the attacker's reference."""
    (test,) = (test for test in TESTS if test.halves_heldout)
    for n_heldout in (4, 5):
        rng = np.random.default_rng(0)
        sides = [rng.normal(size=(n, 4)) for n in (6, n_heldout, 9)]
        names = [[f"{side}{i}" for i in range(n)] for side, n in (("t", 6), ("h", n_heldout))]
        scores = membership_scores(Evidence(sides[0], names[0], sides[1], names[1], sides[2]))
        n_others = len({patient for patient, member in zip(scores.patients, scores.is_member) if not member})
        assert test.n_labellings(6, n_heldout) == math.comb(6 + n_others, n_others)


@pytest.mark.slow  # a minute
def test_honest_sites_are_refused_no_more_often_than_the_familywise_level():
    """40 sites of 16 patients: six gates at their own level 0.05 would refuse one in five."""
    refused = [any(gate.failed for gate in gates_of(small_site(4, seed)).values()) for seed in range(40)]
    assert sum(refused) <= 5  # of a binomial of 0.05, once in a hundred


def test_exposure_stays_in_its_own_file_most_exposed_first(tmp_path):
    images = small_site(4)
    write_audit(tmp_path, audit(images, 120, GatesConfig(), seed=0))
    with (tmp_path / "exposure.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    counts = [int(row["n_nearest"]) for row in rows]
    assert counts == sorted(counts, reverse=True) and sum(counts) == len(images.kept)
    assert {row["patient"] for row in rows} == set(images.train_patients)
