"""Whether a site can pass its leakage gates follows from its numbers of patients, and is said before any training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.paths import REPOSITORY
from support.tiny_experiment import composed

import pipeline.entry  # noqa: F401  (stores the schema that the experiments start from)
from dataset.check import CheckReport, SiteCount
from dataset.enough_patients import TESTS, enough_patients, gate_lines, levels_of_tests, prospects
from dataset.folds import assign_folds, patients_of_folds
from dataset.source import Case
from memorization.gates import LEAKAGE_GATES, GatesConfig
from memorization.leakage import generalization, likelihood, membership, relabelled
from pipeline.site_data import SiteData
from pipeline.tables import experiment_in_words


def test_the_tests_are_those_of_the_gates_with_their_numbers_of_labellings():
    assert {test.name for test in TESTS} == {gate.name for gate in LEAKAGE_GATES}
    drawn = {test.name: test.n_drawn for test in TESTS}
    assert drawn["closest-record share"] == drawn["membership AUC"] == membership.N_RESAMPLES
    assert drawn["AuthPct over held-out"] == drawn["C_T"] == relabelled.N_RELABELLINGS
    assert (drawn["FLD gap"], drawn["Fréchet gap"]) == (likelihood.N_REFITS, generalization.N_RELABELLINGS)


@pytest.mark.parametrize("n_patients", [5, 8, 9, 10, 13, 16, 24])
def test_numbers_of_patients_are_those_of_the_folds(n_patients):
    cases = [Case(f"c{i}", Path(), Path(), f"p{i // 2}", "A") for i in range(2 * n_patients)]
    splits = assign_folds(cases, seed=1)
    counted = [tuple(len(getattr(split, name)) // 2 for name in ("train", "val", "test")) for split in splits]
    assert counted == [(fold.train, fold.val, fold.test) for fold in patients_of_folds(n_patients)]


def test_all_levels_together_are_the_familywise_level_and_every_test_can_refuse():
    for n_train in range(2, 30):
        for n_heldout in range(2, 8):
            levels = levels_of_tests(n_train, n_heldout, 0.05)
            assert not levels or sum(levels.values()) == pytest.approx(0.05)
            for test in TESTS:
                if test.name in levels:
                    assert test.power(n_train, n_heldout, levels[test.name]) >= 0.8
                    assert 1 / test.n_labellings(n_train, n_heldout) <= levels[test.name]


def test_power_is_that_of_the_most_extreme_labelling():
    """Draws that repeat the true labelling count as labellings at least as bad."""
    (test,) = (test for test in TESTS if test.name == "C_T")
    rng = np.random.default_rng(0)
    p = (1 + rng.binomial(test.n_drawn, 1 / math.comb(10, 3), 20_000)) / (1 + test.n_drawn)
    assert test.power(7, 3, 0.01) == pytest.approx(np.mean(p <= 0.01), abs=0.02)
    assert test.smallest_p(7, 3) == pytest.approx(p.mean(), abs=1e-3)


def test_ten_patients_are_enough_for_a_gate_and_eight_are_told_what_would_change_it():
    assert enough_patients() == 10
    eight, ten = gate_lines({"A": 8}), gate_lines({"A": 10})
    assert "too few can be measured at site A" in eight[-1] and "is refused if gates are enforced" in eight[-1]
    for way in ("10 or more patients", "gates.familywise_level", "more folds do not change it"):
        assert way in eight[-1]
    assert len(ten) == 1 and "6 patients trained on, 2 held out: 1 of 6 leakage gates can be measured" in ten[0]


def test_the_check_of_the_data_says_it_for_every_site():
    sites = {"A": SiteCount(8, 40), "B": SiteCount(30, 90)}
    text = CheckReport(sites, {(64, 64): 130}, "uint8", ("grey",), {"lung": 0.1}).text()
    assert "site B, folds 0, 1, 2, 3, 4: 18 patients trained on, 6 held out: 6 of 6 leakage gates" in text
    assert "too few can be measured at site A" in text and "at site B" not in text


def test_the_dry_run_says_it_before_any_training():
    cases = tuple(
        Case(f"{site}{i}", Path(f"{site}{i}.png"), Path("mask.png"), f"{site}{i}", site)
        for site, n_patients in (("A", 8), ("B", 30))
        for i in range(n_patients)
    )
    text = "\n".join(experiment_in_words(composed("demo", "data.fold=0"), SiteData(("A", "B"), cases=cases)))
    assert "site A, fold 0: 4 patients trained on, 2 held out: 0 of 6 leakage gates can be measured" in text
    assert "too few can be measured at site A, fold 0" in text and "10 or more patients at the site" in text
    assert "site B, fold 0: 18 patients trained on, 6 held out: 6 of 6 leakage gates" in text


def test_another_fold_or_patients_held_out_are_named_where_they_help():
    assert "data.fold=4" in gate_lines({"A": 9}, folds=[0])[-1]
    assert "generator.train_on=train" in gate_lines({"A": 30}, train_on="train_and_val")[-1]
    assert len(gate_lines({"A": 30})) == 1 and prospects("A", 30)[0].is_enough


def test_the_defaults_are_those_of_the_gates_and_readme_names_the_number():
    from dataset.enough_patients import FAMILYWISE_LEVEL, MIN_MEASURED

    assert (GatesConfig().familywise_level, GatesConfig().min_measured) == (FAMILYWISE_LEVEL, MIN_MEASURED)
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    assert f"at least {enough_patients()} patients" in readme
    assert f"{enough_patients(n_wanted=6)} patients" in readme
