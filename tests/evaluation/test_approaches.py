"""The comparison of approaches and the scaling curve: closed-form values, and sections only where they belong."""

from __future__ import annotations

import csv
import json
import math

import pandas as pd
import pytest

from evaluation.approaches import approach_of, at_own_site, compare, model_order, scaling_curve
from evaluation.report.page import write_report
from evaluation.results import write_results

SITES = ("A", "B")
CASES = 6


def rows_of(model: str, trained_on: str, dice: dict[str, float], folds: range = range(3)) -> list[dict]:
    """Dice of ``dice[site]`` at every case, a little apart from each other, higher in later folds."""
    return [
        {
            "model": model,
            "trained_on": trained_on,
            "tested_on": site,
            "fold": fold,
            "case": f"{site}{case}",
            "label": "l",
        }
        | {"dice": value + 0.001 * case + 0.01 * fold, "iou": 0.5, "hd95": 3.0, "nsd": 0.5}
        for site, value in dice.items()
        for fold in folds
        for case in range(CASES)
    ]


@pytest.fixture
def results() -> pd.DataFrame:
    rows = rows_of("real-A", "A", {"A": 0.80, "B": 0.60}) + rows_of("real-B", "B", {"A": 0.50, "B": 0.70})
    rows += rows_of("real-all", "all", {"A": 0.85, "B": 0.79})
    rows += rows_of("syn-real-A", "A", {"A": 0.83, "B": 0.70}) + rows_of("syn-real-B", "B", {"A": 0.66, "B": 0.75})
    rows += rows_of("syn2-real-A", "A", {"A": 0.81, "B": 0.62}) + rows_of("syn2-real-B", "B", {"A": 0.54, "B": 0.71})
    rows += rows_of("fedavg-all", "all", {"A": 0.82, "B": 0.74})
    rows += rows_of("fedbn-A", "A", {"A": 0.79, "B": 0.1}) + rows_of("fedbn-B", "B", {"A": 0.1, "B": 0.72})
    return pd.DataFrame(rows)


def test_a_site_gets_its_own_model_or_the_one_for_all(results):
    own = at_own_site(results, ["fedbn", "fedavg"])
    means = own.groupby(["model", "tested_on"])["dice"].mean()
    offset = 0.01 + 0.0025  # of the middle fold and the middle case
    assert means["fedbn", "A"] == pytest.approx(0.79 + offset) and means["fedbn", "B"] == pytest.approx(0.72 + offset)
    assert means["fedavg", "B"] == pytest.approx(0.74 + offset)


def test_every_approach_is_compared_with_ours_by_its_mean_over_sites(results):
    found = {row.approach: row for row in compare(results)}
    assert list(found) == ["real", "real-all", "syn-real", "fedavg", "fedbn"]
    expected = {"real": 0.04, "real-all": -0.03, "fedavg": 0.01, "fedbn": 0.035}
    for approach, difference in expected.items():
        assert found[approach].difference.mean == pytest.approx(difference)
    assert found["syn-real"].difference is None
    assert found["real"].test.n_pairs == 6  # three folds at two sites
    assert found["real"].p_corrected == pytest.approx(min(1.0, 4 * found["real"].test.p))


def test_the_curve_is_the_gain_over_own_images(results):
    unions = [{"name": "all", "sites": ["A", "B", "C"]}, {"name": "2", "sites": ["A", "B"]}]
    two, everyone = scaling_curve(results, unions)
    assert (two.union, two.n_sites, everyone.n_sites) == ("2", 2, 3)
    assert two.own_test.mean == pytest.approx((0.01 + 0.01) / 2)
    assert everyone.own_test.mean == pytest.approx((0.03 + 0.05) / 2)
    assert two.all_tests.mean == pytest.approx((0.01 + 0.02 + 0.04 + 0.01) / 4)


def test_the_curve_has_intervals_over_cases_where_there_is_one_fold(results):
    (point,) = scaling_curve(results[results["fold"] == 0], [{"name": "2", "sites": ["A", "B"]}])
    assert point.own_test.low <= point.own_test.mean <= point.own_test.high
    assert "bootstrap over 12 cases" in point.own_test.kind


def test_the_difference_at_a_site_is_that_of_its_own_models(results):
    found = {row.approach: row for row in compare(results)}
    assert found["fedbn"].difference_by_site["A"].mean == pytest.approx(0.04)
    assert found["fedavg"].difference_by_site["B"].mean == pytest.approx(0.01)
    assert found["fedavg"].difference_by_site["B"].kind == "t over 3 folds"


def test_an_approach_without_a_model_for_every_site_has_no_mean(results):
    found = {row.approach: row for row in compare(results[results["model"] != "fedbn-B"])}
    assert set(found["fedbn"].by_site) == {"A"} and math.isnan(found["fedbn"].mean)
    assert found["fedbn"].difference.mean == pytest.approx(0.04)  # over site A alone, for both


def test_models_stand_in_the_order_of_the_approaches():
    names = ["real-A", "real-2", "real-all", "syn-2", "syn-10", "syn-[A+C]", "syn-all", "syn-real-A", "syn2-real-A"]
    names += [
        "syn2-real-B",
        "syn10-real-A",
        "syn[A+C]-real-A",
        "fedavg-all",
        "fedprox-all",
        "fedbn-A",
        "dsl-all",
        "x-A",
    ]
    pairs = [(name, name.rsplit("-", 1)[1]) for name in reversed(names)]
    assert [model for model, _ in sorted(pairs, key=lambda pair: model_order(*pair, "AB"))] == names
    # a hospital may be called 2; no real image of others is pooled there
    assert approach_of("real-2", "2", ["1", "2"]) == "real" and approach_of("real-2", "2", ["A", "B"]) == "real-all"


def run_folder(tmp_path, results: pd.DataFrame):
    for fold, rows in results.groupby("fold"):
        folder = tmp_path / "run" / f"fold_{fold}"
        folder.mkdir(parents=True)
        write_results(folder / "results.csv", rows.to_dict("records"))
    return tmp_path / "run"


def test_the_report_shows_approaches_and_scaling(tmp_path, results):
    run = run_folder(tmp_path, results)
    unions = {"unions": [{"name": "2", "sites": ["A", "B"]}, {"name": "all", "sites": ["A", "B", "C"]}]}
    (run / "fold_0" / "scaling.json").write_text(json.dumps(unions))
    text = write_report(run).read_text()
    for shown in (
        "Comparison with other approaches",
        "FedAvg: weights are averaged",
        "Gain with the number of contributing sites",
    ):
        assert shown in text, shown
    for shown in ("+4.0 (a gain)", "p, Bonferroni", "not independent", "★ 84.2", "▲ +5.0"):
        assert shown in text, shown
    assert "★ 86.2" not in text  # pooled real images are no site's choice
    with (run / "scaling.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["union"], row["n_sites"], row["tested"]) for row in rows] == [
        *(("2", "2", tested) for tested in ("own site", "all sites")),
        *(("all", "3", tested) for tested in ("own site", "all sites")),
    ]


def test_a_run_of_one_approach_has_none_of_these_sections(tmp_path, results):
    text = write_report(run_folder(tmp_path, results[results["model"] == "real-A"])).read_text()
    assert "Comparison with other approaches" not in text and "Training across sites" not in text
    assert "Gain with the number of contributing sites" not in text


def test_a_run_of_baselines_alone_misses_nothing_of_the_main_experiment(tmp_path, results):
    run = run_folder(tmp_path, results[results["model"].isin(["real-A", "real-B", "fedavg-all"])])
    (run / "fold_0" / "fedavg" / "all").mkdir(parents=True)
    text = write_report(run).read_text()
    assert "has not run yet" not in text and "not both syn-real and real" not in text


def test_a_broken_list_of_unions_leaves_the_report_whole(tmp_path, results):
    run = run_folder(tmp_path, results)
    (run / "fold_0" / "scaling.json").write_text('{"unions": [{"name": "2"}]}')
    text = write_report(run).read_text()
    assert "Gain with the number of contributing sites" not in text and not (run / "scaling.csv").exists()


def test_curves_of_every_union_are_shown_also_of_one_named_with_brackets(tmp_path):
    """``finetune_[A+C]`` is no pattern: in a glob its brackets would stand for one letter."""
    for stage in ("finetune", "finetune_2", "finetune_10", "finetune_[A+C]"):
        folder = tmp_path / "fold_0" / stage / "A"
        folder.mkdir(parents=True)
        point = {"step": 1, "unit": "epoch", "train_loss": 0.5}
        (folder / "curves.jsonl").write_text(json.dumps(point) + "\n")
    text = write_report(tmp_path).read_text()
    titles = ["(syn-real-X): one colour", *(f"(syn{name}-real-X): one colour" for name in ("2", "10", "[A+C]"))]
    places = [text.rindex(title) for title in titles]
    assert places == sorted(places)
