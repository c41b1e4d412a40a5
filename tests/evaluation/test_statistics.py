"""Tables, intervals and tests against hand-computed numbers and scipy."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from common.errors import InputError
from evaluation.results import COLUMNS, FOREGROUND, best_cells, format_table, read_results, summarise, write_results
from evaluation.statistics import bonferroni, bootstrap_interval, gain, paired_test, t_interval

NAN = float("nan")


def row(model, tested_on, fold, case, dice, label="polyp", hd95=5.0):
    key = {"model": model, "trained_on": model.split("-")[-1], "tested_on": tested_on, "fold": fold}
    return key | {"case": case, "label": label, "dice": dice, "iou": dice, "hd95": hd95, "nsd": dice}


def table(rows):
    return pd.DataFrame(rows, columns=list(COLUMNS))


def one(summary, **key):
    chosen = summary
    for name, value in key.items():
        chosen = chosen[chosen[name] == value]
    (found,) = chosen.to_dict("records")
    return found


def test_results_survive_the_file_and_do_not_depend_on_row_order(tmp_path):
    rows = [row("real-NA", "NA", 0, "007", 0.1 + 0.2), row("real-NA", "NA", 0, "008", NAN, hd95=NAN)]
    write_results(tmp_path / "results.csv", rows)
    write_results(tmp_path / "turned.csv", rows[::-1])
    assert (tmp_path / "results.csv").read_bytes() == (tmp_path / "turned.csv").read_bytes()
    back = read_results(tmp_path / "results.csv")
    assert back["case"].tolist() == ["007", "008"] and back["trained_on"].tolist() == ["NA", "NA"]
    assert back["dice"][0] == 0.1 + 0.2 and math.isnan(back["dice"][1]) and back["fold"][0] == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model,fold\nreal-A,0\n", "no column"),
        (",".join(COLUMNS) + "\nreal-A,A,A,0,c,l,high,1,1,1\n", "not a readable table"),
        (",".join(COLUMNS) + "\n" + "real-A,A,A,0,c,l,1,1,1,1\n" * 2, "lists twice"),
        ("", "not a readable table"),
    ],
)
def test_a_broken_table_is_refused_with_its_name(tmp_path, text, problem):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        read_results(tmp_path / "results.csv")
    assert "results.csv" in caught.value.where


def test_summary_is_the_mean_over_cases_then_folds_with_a_t_interval():
    """D42: the original had no aggregation. Folds count alike however many cases they hold."""
    rows = [row("real-A", "A", 0, "a", 0.4), row("real-A", "A", 0, "b", 0.8), row("real-A", "A", 1, "c", 0.7)]
    found = one(summarise(table(rows)), label="polyp", metric="dice")
    assert found["mean"] == pytest.approx((0.6 + 0.7) / 2)  # not 0.6333, the mean of all cases
    assert found["std"] == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert (found["n_folds"], found["n_cases"], found["n_undefined"]) == (2, 3, 0)
    # the t interval of two folds reaches 0.635 to each side, and is cut at the bounds of Dice
    assert found["interval_kind"] == "t over 2 folds" and found["high"] == 1.0
    assert found["low"] == pytest.approx(0.65 - stats.t.ppf(0.975, 1) * 0.05)


def test_a_label_absent_everywhere_does_not_spoil_the_foreground_mean():
    """D4: one label missing in all cases made the original's foreground mean NaN."""
    rows = [row("real-A", "A", fold, case, 0.5, hd95=3.0) for fold in (0, 1) for case in "ab"]
    rows += [row("real-A", "A", fold, case, NAN, label="rare", hd95=NAN) for fold in (0, 1) for case in "ab"]
    summary = summarise(table(rows))
    for metric, value in (("dice", 0.5), ("hd95", 3.0)):
        found = one(summary, label=FOREGROUND, metric=metric)
        assert found["mean"] == value and found["n_undefined"] == 4
    rare = one(summary, label="rare", metric="dice")
    assert math.isnan(rare["mean"]) and rare["n_folds"] == 0 and rare["n_undefined"] == 4


def test_one_fold_gets_a_seeded_bootstrap_that_says_so():
    rng = np.random.default_rng(0)
    rows = [row("real-A", "A", 0, f"{i:03d}", value) for i, value in enumerate(rng.uniform(0.3, 0.9, 60))]
    first, again = (one(summarise(table(order)), label="polyp", metric="dice") for order in (rows, rows[::-1]))
    assert first["interval_kind"] == "bootstrap over 60 cases" and math.isnan(first["std"])
    assert (first["low"], first["high"]) == (again["low"], again["high"])
    error = np.std([r["dice"] for r in rows]) / math.sqrt(60)
    assert first["high"] - first["low"] == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_clusters_widen_the_bootstrap_where_a_patient_has_many_images():
    """D14: images of one patient are not independent."""
    by_patient = np.random.default_rng(1).normal(size=12)
    values, patients = np.repeat(by_patient, 10), np.repeat(np.arange(12), 10)
    by_case, by_cluster = bootstrap_interval(values, 0), bootstrap_interval(values, 0, clusters=patients)
    assert by_cluster.mean == pytest.approx(by_case.mean) and by_cluster.kind == "bootstrap over 12 patients"
    ratio = (by_cluster.high - by_cluster.low) / (by_case.high - by_case.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.1)


def gains_table(differences):
    rows = []
    for (fold, trained_on, tested_on), difference in differences.items():
        for case, level in (("a", 0.4), ("b", 0.6)):
            rows.append(row(f"real-{trained_on}", tested_on, fold, case, level, hd95=20.0))
            better = row(f"syn-real-{trained_on}", tested_on, fold, case, level + difference, hd95=20 - 10 * difference)
            rows.append(better)
        rows.append(row("real-all", tested_on, fold, "a", 0.9))
    return table(rows).drop_duplicates(["model", "tested_on", "fold", "case"])


def random_differences(n_folds):
    rng = np.random.default_rng(3)
    return {(fold, a, b): rng.normal(0.03, 0.05) for fold in range(n_folds) for a in "AB" for b in "AB"}


@pytest.mark.parametrize("metric", ["dice", "hd95"])
def test_paired_test_is_the_papers_wilcoxon_over_fold_and_site_pairs(metric):
    """D14: the pairs are not independent, and the test says so."""
    differences = random_differences(5)
    test = paired_test(gains_table(differences), "syn-real", "real", metric)
    values = np.array(list(differences.values()))
    assert test.n_pairs == 20 and test.p == pytest.approx(stats.wilcoxon(values, alternative="greater").pvalue)
    assert test.mean_difference == pytest.approx(values.mean() * (1 if metric == "dice" else -10))
    ranks = stats.rankdata(abs(values))
    assert test.effect == pytest.approx((ranks[values > 0].sum() - ranks[values < 0].sum()) / ranks.sum())
    assert "not independent" in test.note


def test_paired_test_of_two_named_models_pairs_folds_and_tested_sites():
    test = paired_test(gains_table(random_differences(5)), "syn-real-A", "real-all")
    assert test.n_pairs == 10 and test.mean_difference < 0 and test.p > 0.9


def test_paired_test_gives_no_p_for_few_or_equal_pairs():
    few = paired_test(gains_table(random_differences(1)), "syn-real", "real")
    assert math.isnan(few.p) and "at least 5" in few.reason and few.n_pairs == 4
    equal = paired_test(gains_table(dict.fromkeys(random_differences(3), 0.0)), "syn-real", "real")
    assert math.isnan(equal.p) and "equal" in equal.reason
    absent = paired_test(gains_table(random_differences(3)), "syn", "real")
    assert absent.n_pairs == 0 and math.isnan(absent.p)


def test_gain_is_the_paired_difference_over_folds():
    differences = random_differences(4)
    found = gain(gains_table(differences), "syn-real-A", "real-A", ["A"])
    expected = t_interval([differences[fold, "A", "A"] for fold in range(4)])
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert found.kind == "t over 4 folds"


def test_gain_in_one_fold_draws_the_same_cases_for_both_models():
    found = gain(gains_table({(0, "A", "A"): 0.05}), "syn-real-A", "real-A", ["A"])
    # cases differ by 0.2 but every case gains 0.05: pairing leaves no spread
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert found.kind == "bootstrap over 2 cases"


def test_t_interval_and_bonferroni():
    values = [0.7, 0.72, 0.69, 0.75, 0.71]
    reach = stats.t.ppf(0.975, 4) * stats.sem(values)
    found = t_interval(values)
    assert (found.low, found.high) == pytest.approx((np.mean(values) - reach, np.mean(values) + reach))
    assert math.isnan(t_interval([0.7]).low)
    assert bonferroni([0.01, 0.4, NAN])[:2] == pytest.approx([0.02, 0.8]) and bonferroni([0.6, 0.7])[0] == 1.0


def test_terminal_table_has_models_down_and_sites_across():
    rows = [row(model, site, fold, "a", 0.5 + 0.1 * fold) for model in ("syn-real-A", "real-all", "real-A")
            for site in "AB" for fold in (0, 1)]  # fmt: skip
    lines = format_table(summarise(table(rows))).splitlines()
    assert lines[0].split() == ["Dice", "%", "on", "A", "on", "B"]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["real-A", "real-all", "syn-real-A"]
    assert [line.split()[0] for line in lines[1:6:2]] == ["own", "pooled", "shared"] and "55.0 ±7.1" in lines[2]


def test_the_best_in_use_is_marked_and_pooled_real_images_are_never_it():
    rows = [row("real-all", "A", 0, "a", 0.9, hd95=1.0), row("real-A", "A", 0, "a", 0.6, hd95=5.0)]
    rows += [row("fedavg-all", "A", 0, "a", 0.80001, hd95=7.0), row("syn-real-A", "A", 0, "a", 0.8, hd95=8.0)]
    summary = summarise(table(rows))
    foreground = summary[summary["label"] == FOREGROUND]
    assert best_cells(foreground[foreground["metric"] == "dice"], "dice") == {("fedavg-all", "A"), ("syn-real-A", "A")}
    assert best_cells(foreground[foreground["metric"] == "hd95"], "hd95") == {("real-A", "A")}
    marks = {line.split()[0]: line.split()[-1] for line in format_table(summary).splitlines() if line[:2] == "  "}
    assert marks == {"real-A": "^", "real-all": "90.0", "fedavg-all": "*", "syn-real-A": "*^"}


def test_the_summary_of_many_models_is_that_of_each_alone():
    """One reshaping serves all labels and metrics: folds of other sizes and undefined values must not mix."""
    rng = np.random.default_rng(7)
    rows = [
        row("real-A", site, fold, f"{site}{fold}{case}", NAN if rng.random() < 0.3 else rng.random(), label)
        for site in "AB" for fold in (0, 1) for case in range(3 + 2 * fold) for label in ("x", "y")
    ]  # fmt: skip
    results = table(rows)
    for found in summarise(results).to_dict("records"):
        part = results[results["tested_on"] == found["tested_on"]]
        part = part if found["label"] == FOREGROUND else part[part["label"] == found["label"]]
        by_fold = [
            np.nanmean([np.nanmean(of_label[found["metric"]]) for _, of_label in of_fold.groupby("label")])
            for _, of_fold in part.groupby("fold")
        ]
        assert found["mean"] == pytest.approx(np.mean(by_fold)) and found["std"] == pytest.approx(
            np.std(by_fold, ddof=1)
        )
        assert found["n_undefined"] == part[found["metric"]].isna().sum() and found["n_cases"] == 8
