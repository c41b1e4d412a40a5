"""The comparison of approaches and the scaling curve: closed-form values, and sections only where they belong."""

from __future__ import annotations

import csv
import json

import pandas as pd
import pytest

from evaluation.approaches import at_own_site, compare, scaling_curve
from evaluation.report import write_report
from evaluation.results import format_table, model_order, summarise, write_results

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


def test_models_stand_in_the_order_of_the_approaches(results):
    order = sorted(set(zip(results["model"], results["trained_on"])), key=lambda pair: model_order(*pair))
    names = [model for model, _ in order]
    assert names[:3] == ["real-A", "real-B", "real-all"] and names[-1] == "fedbn-B"
    assert names.index("syn2-real-A") < names.index("fedavg-all")
    assert format_table(summarise(results)).splitlines()[1].startswith("real-A")


def run_folder(tmp_path, results: pd.DataFrame):
    for fold, rows in results.groupby("fold"):
        folder = tmp_path / "run" / f"fold_{fold}"
        folder.mkdir(parents=True)
        write_results(folder / "results.csv", rows.to_dict("records"))
    return tmp_path / "run"


def test_the_report_shows_approaches_scaling_and_rounds(tmp_path, results):
    run = run_folder(tmp_path, results)
    unions = {"unions": [{"name": "2", "sites": ["A", "B"]}, {"name": "all", "sites": ["A", "B", "C"]}]}
    (run / "fold_0" / "scaling.json").write_text(json.dumps(unions))
    stage = run / "fold_0" / "fedavg" / "all"
    stage.mkdir(parents=True)
    points = [{"step": i, "unit": "round", "val_dice_ema": 0.1 * i, "val_dice_A": 0.2 * i} for i in (1, 2, 3)]
    (stage / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    summary = {"rounds": 3, "local_epochs": 1, "best_round": 2, "bytes_up": 2_000_000, "optimizer": "average"}
    left_out = [{"round": 2, "site": "B", "why": "lost its <power>"}]
    (stage / "summary.json").write_text(json.dumps({**summary, "weights": {"A": 0.4, "B": 0.6}, "left_out": left_out}))
    text = write_report(run).read_text()
    for shown in (
        *("Against other approaches", "FedAvg: weights are averaged", "What further contributors bring"),
        *("Round 2 went on without site B: lost its &lt;power&gt;", "2.0 MB a round", "A 40.0 %, B 60.0 %"),
    ):
        assert shown in text, shown
    with (run / "scaling.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["union"], row["n_sites"], row["tested"]) for row in rows] == [
        *(("2", "2", tested) for tested in ("own site", "all sites")),
        *(("all", "3", tested) for tested in ("own site", "all sites")),
    ]


def test_a_run_of_one_approach_has_none_of_these_sections(tmp_path, results):
    text = write_report(run_folder(tmp_path, results[results["model"] == "real-A"])).read_text()
    assert "Against other approaches" not in text and "Training across sites" not in text
    assert "What further contributors bring" not in text


def test_a_run_of_baselines_alone_misses_nothing_of_the_main_experiment(tmp_path, results):
    run = run_folder(tmp_path, results[results["model"].isin(["real-A", "real-B", "fedavg-all"])])
    (run / "fold_0" / "fedavg" / "all").mkdir(parents=True)
    text = write_report(run).read_text()
    assert "has not run yet" not in text and "not both syn-real and real" not in text
