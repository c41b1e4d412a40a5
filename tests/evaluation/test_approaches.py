"""The comparison of approaches and the scaling curve: closed-form values, and sections only where they belong."""

from __future__ import annotations

import csv
import json
import math

import pandas as pd
import pytest

from evaluation.approaches import approach_of, at_own_site, model_order, scaling_curve
from evaluation.report.page import write_report
from evaluation.results import write_results
from evaluation.statistics import GAIN, LOSS
from evaluation.verdicts import better_control, judge_report

SITES = ("A", "B")
CASES = 6


def rows_of(model: str, trained_on: str, dice: dict[str, float], folds: range = range(3)) -> list[dict]:
    """Dice of ``dice[site]`` at every case, a little apart from each other, higher in later folds; a patient a case."""
    return [
        {
            "model": model,
            "trained_on": trained_on,
            "tested_on": site,
            "fold": fold,
            "seed": 0,
            "patient": f"{site}{fold}{case}",
            "case": f"{site}{fold}{case}",
            "label": "l",
        }
        | {
            "dice": value + 0.001 * (case - 2.5) * (1 + len(model) % 3) + 0.01 * fold,
            "iou": 0.5,
            "hd95": 3.0,
            "nsd": 0.5,
        }
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
    offset = 0.01  # of the middle fold; over cases the offsets cancel
    assert means["fedbn", "A"] == pytest.approx(0.79 + offset) and means["fedbn", "B"] == pytest.approx(0.72 + offset)
    assert means["fedavg", "B"] == pytest.approx(0.74 + offset)


def test_every_approach_is_compared_with_ours_by_its_mean_over_sites(results):
    found = {row.approach: row for row in judge_report(results).comparisons}
    assert list(found) == ["real", "real-all", "syn-real", "fedavg", "fedbn"]
    expected = {"real": (0.04, GAIN), "real-all": (-0.03, LOSS), "fedavg": (0.01, GAIN), "fedbn": (0.035, GAIN)}
    for approach, (difference, verdict) in expected.items():
        assert found[approach].over_sites.interval.mean == pytest.approx(difference, abs=2e-3)
        assert found[approach].over_sites.verdict == verdict and found[approach].over_sites.n_patients == 36
    assert found["syn-real"].over_sites is None


def with_a_longer_control(results, dice):
    longer = [row for site in SITES for row in rows_of(f"real-long-{site}", site, {site: dice, "AB".strip(site): 0.6})]
    return pd.concat([results, pd.DataFrame(longer)], ignore_index=True)


def networks(**validation_dice):
    rows = [
        {"model": model.replace("_", "-"), "trained_on": model[-1], "fold": 0, "seed": 0, "n_epochs": 30, "fault": ""}
        | {"validation_dice": dice}
        for model, dice in validation_dice.items()
    ]
    return pd.DataFrame(rows)


def test_a_gain_is_claimed_against_a_training_of_equal_length(results):
    """Measured on chest X-rays: +1.1 points against half the length, -0.6 and -0.1 against the same."""
    short, equal = judge_report(results), judge_report(with_a_longer_control(results, 0.84))
    assert [gain.control for gain in short.gains] == ["real-A", "real-B"]
    assert [gain.own_images.verdict for gain in short.gains] == [GAIN, GAIN]
    assert [gain.control for gain in equal.gains] == ["real-long-A", "real-long-B"]
    assert [gain.own_images.verdict for gain in equal.gains] == [LOSS, LOSS]
    # the other sites' images, where there is still a gain
    assert equal.gains[0].other_images.verdict == GAIN
    # and no other table claims a gain against half the length
    judged = {row.approach: row.over_sites for row in equal.comparisons}
    assert judged["real"] is None and judged["real-long"].verdict == LOSS and judged["real-all"] is not None


def test_the_control_is_the_one_with_the_better_validation_dice_not_with_the_better_test():
    models = {"real-A", "real-long-A"}
    assert better_control(models, "A", networks(real_A=0.9, real_long_A=0.8)) == "real-A"
    assert better_control(models, "A", networks(real_A=0.8, real_long_A=0.9)) == "real-long-A"
    assert better_control(models, "A", networks(real_A=0.8)) == "real-long-A"
    assert better_control({"real-A"}, "A", None) == "real-A" and better_control(set(), "A", None) is None


def test_a_training_that_failed_is_no_baseline(results):
    """Seen: pooled images stayed at a validation Dice of 0, and own images "beat" them by 50 points."""
    failed = networks(real_A=0.0, real_B=0.9, syn_real_A=0.9, syn_real_B=0.9, real_all=0.0)
    failed.loc[failed["model"] == "real-A", "fault"] = "never found a label"
    failed.loc[failed["model"] == "real-all", "fault"] = "never found a label"
    judged = judge_report(results, failed)
    of_a, of_b = judged.gains
    assert of_a.own_images.verdict == "no verdict, as the training of real-A (fold 0) never found a label"
    assert math.isnan(of_a.own_images.p) and of_b.own_images.verdict == GAIN
    found = {row.approach: row.over_sites for row in judged.comparisons}
    assert "no verdict" in found["real-all"].verdict and "no verdict" in found["real"].verdict
    assert found["fedbn"].verdict == GAIN


def test_all_verdicts_of_a_report_are_corrected_together(results):
    judged = judge_report(results)
    assert judged.n_comparisons == 4 + 4  # own and other images at two sites, and four approaches
    alone = judge_report(results[results["model"].isin(["real-A", "syn-real-A"]) & (results["tested_on"] == "A")])
    assert alone.n_comparisons == 2  # at its own site, and over all sites, of which there is one
    wide, narrow = (found.gains[0].own_images.interval for found in (judged, alone))
    assert wide.high - wide.low > narrow.high - narrow.low


def test_where_nothing_differs_reports_hold_hardly_any_verdict():
    """A small form of ``python -m studies.interval_simulation``: 5 % and three standard errors of 100 runs."""
    from studies.interval_simulation import simulate_reports
    from studies.simulated_dice import DISTRIBUTIONS

    false, found = simulate_reports(DISTRIBUTIONS[0], 2, 12, 100).shares.values()
    assert false.value <= 0.115 and found.value > 0.5


def test_a_site_that_is_only_tested_has_no_verdict_of_its_own(results):
    unseen = rows_of("real-A", "A", {"C": 0.5}) + rows_of("syn-real-A", "A", {"C": 0.6})
    judged = judge_report(pd.concat([results, pd.DataFrame(unseen)], ignore_index=True))
    assert [gain.site for gain in judged.gains] == ["A", "B"]
    assert judged.gains[0].unseen_images.interval.mean == pytest.approx(0.1) and judged.gains[1].unseen_images is None
    assert judged.n_comparisons == 9
    assert {site for row in judged.comparisons for site in row.by_site} == {"A", "B"}
    assert all(not math.isnan(row.mean) for row in judged.comparisons)


def test_the_curve_is_the_gain_over_own_images(results):
    unions = [{"name": "all", "sites": ["A", "B", "C"]}, {"name": "2", "sites": ["A", "B"]}]
    two, everyone = scaling_curve(results, unions)
    assert (two.union, two.n_sites, everyone.n_sites) == ("2", 2, 3)
    assert two.own_test.mean == pytest.approx((0.01 + 0.01) / 2)
    assert everyone.own_test.mean == pytest.approx((0.03 + 0.05) / 2)
    assert two.all_tests.mean == pytest.approx((0.01 + 0.02 + 0.04 + 0.01) / 4)


def test_the_curve_has_intervals_over_patients_and_names_its_control(results):
    (point,) = scaling_curve(results[results["fold"] == 0], [{"name": "2", "sites": ["A", "B"]}])
    assert point.own_test.low <= point.own_test.mean <= point.own_test.high
    assert point.own_test.kind == "t over 12 patients" and point.control == "real"
    (point,) = scaling_curve(with_a_longer_control(results, 0.84), [{"name": "2", "sites": ["A", "B"]}])
    assert point.control == "real-long" and point.own_test.mean < 0


def test_the_difference_at_a_site_is_that_of_its_own_models(results):
    found = {row.approach: row for row in judge_report(results).comparisons}
    assert found["fedbn"].difference_by_site["A"].mean == pytest.approx(0.04, abs=2e-3)
    assert found["fedavg"].difference_by_site["B"].mean == pytest.approx(0.01, abs=2e-3)
    assert found["fedavg"].difference_by_site["B"].kind == "t over 18 patients"


def test_an_approach_without_a_model_for_every_site_has_no_mean(results):
    found = {row.approach: row for row in judge_report(results[results["model"] != "fedbn-B"]).comparisons}
    assert set(found["fedbn"].by_site) == {"A"} and math.isnan(found["fedbn"].mean)
    assert found["fedbn"].over_sites.interval.mean == pytest.approx(0.04, abs=2e-3)  # over site A alone, for both


def test_models_stand_in_the_order_of_the_approaches():
    names = [
        "real-A",
        "real-long-A",
        "real-2",
        "real-all",
        "real-long-all",
        "syn-2",
        "syn-10",
        "syn-[A+C]",
        "syn-all",
        "syn-real-A",
        "syn2-real-A",
    ]
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
    for shown in ("a gain", "p, corrected", "paired by patient", "★ 84.0"):
        assert shown in text, shown
    assert "★ 86.0" not in text  # pooled real images are no site's choice
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
