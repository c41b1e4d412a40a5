"""The report's answer: the Dice table, what sharing gained each site, the paired test, and the other metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluation.report_html import Html, absent, element, heading, join, note, paragraph, picture, table
from evaluation.report_pictures import scores_figure
from evaluation.results import FOREGROUND, format_interval, format_value
from evaluation.segmentation import METRICS
from evaluation.statistics import Interval, bonferroni, gain, paired_test

if TYPE_CHECKING:
    import pandas as pd

CONVENTIONS = (
    "Each label of each test case is scored at the image's own resolution; a fold's value is the mean over cases, "
    "then over labels; the tables show the mean over folds.",
    "HD95 is the 95th percentile of the distances between both borders, pooled, in mm (pixels where images have no "
    "spacing); NSD counts the border pixels within the tolerance of the other border.",
    "A label absent from both reference and prediction is undefined: left out of the means and counted as undefined.",
    "A label absent from one of the two scores Dice, IoU and NSD 0 and, as HD95, the image's diagonal, so that a "
    "missed object never improves a mean.",
    "2D images stored as volumes of depth 1 are scored as 2D.",
    "With one fold, intervals come from its cases alone and do not hold the spread between trainings.",
)


def answer(results: pd.DataFrame, summary: pd.DataFrame) -> Html:
    """The first screen: Dice of every model on every site; where there is syn-real, what it gained, and the test."""
    if not results["model"].astype(str).str.startswith("syn-real-").any():
        return metric_table(summary, "dice")
    return join(
        metric_table(summary, "dice"),
        element("ul", join(*(element("li", sentence) for sentence in gain_sentences(results))), "answers"),
        test_statement(results),
    )


def metric_table(summary: pd.DataFrame, metric: str, label: str = FOREGROUND) -> Html:
    """Models down, tested sites across: mean over an interval; the best mean of each site in bold."""
    chosen = summary[(summary["metric"] == metric) & (summary["label"] == label)]
    sites, models = sorted(chosen["tested_on"].unique()), list(dict.fromkeys(chosen["model"]))
    best = _best_of_each_site(chosen, metric)
    cells = {}
    for row in chosen.to_dict("records"):
        shown = format_value(row["mean"], metric)
        mean = element("strong", shown) if shown == best.get(row["tested_on"]) else shown
        spread = "" if math.isnan(row["std"]) else f"± {format_value(row['std'], metric)} "
        cells[row["model"], row["tested_on"]] = join(mean, element("small", spread + format_interval(row, metric)))
    rows = [[model, *(cells.get((model, site), "-") for site in sites)] for model in models]
    return table(["Model", *(f"tested on {site}" for site in sites)], rows, _table_caption(chosen, metric))


def _best_of_each_site(chosen: pd.DataFrame, metric: str) -> dict[str, str]:
    # compared as shown, so that equal-looking means are bold together
    means = chosen.groupby("tested_on")["mean"]
    best = means.max() if METRICS[metric].direction == "higher" else means.min()
    return {str(site): format_value(value, metric) for site, value in best.items() if not math.isnan(value)}


def _table_caption(chosen: pd.DataFrame, metric: str) -> str:
    kinds = sorted(chosen["interval_kind"].unique())
    unit = "%" if METRICS[metric].unit == "fraction" else METRICS[metric].unit
    spread = " ± standard deviation over folds" if chosen["std"].notna().any() else ""
    return (
        f"{METRICS[metric].title}, {unit}: mean{spread} [95 % interval: {', '.join(kinds)}]. "
        f"{METRICS[metric].direction.capitalize()} is better; each site's best in bold."
    )


def gain_sentences(results: pd.DataFrame) -> list[Html]:
    """For each site, in plain language: syn-real-X against real-X, on its own and on the other sites' test images."""
    models, tested = set(results["model"]), sorted(results["tested_on"].unique())
    sites = sorted(set(results["trained_on"]) & set(tested))
    sentences = []
    for site in sites:
        if not {f"syn-real-{site}", f"real-{site}"} <= models:
            sentences.append(join(element("strong", f"Site {site}:"), "not both syn-real and real are evaluated yet."))
            continue
        others = [other for other in tested if other != site]
        phrases = [_gain_phrase(results, site, [site], "its own test images")]
        if others:
            phrases.append(_gain_phrase(results, site, others, "the other sites' test images"))
        start = f"against training on its own images alone, sharing changed Dice by {' and by '.join(phrases)}."
        sentences.append(join(element("strong", f"Site {site}:"), start))
    return sentences


def _gain_phrase(results: pd.DataFrame, site: str, tested_on: Sequence[str], images: str) -> str:
    difference = gain(results, f"syn-real-{site}", f"real-{site}", tested_on)
    mean, low, high = (
        format_value(value, "dice", signed=True) for value in (difference.mean, difference.low, difference.high)
    )
    interval = "no interval yet" if math.isnan(difference.low) else f"95 % interval {low} to {high}, {difference.kind}"
    return f"{mean} points on {images} ({interval}: {verdict(difference)})"


def verdict(difference: Interval) -> str:
    """What an interval of a difference allows to say."""
    if math.isnan(difference.low):
        return "too little data to say"
    if difference.low > 0:
        return "a gain"
    return "a loss" if difference.high < 0 else "no clear difference"


def test_statement(results: pd.DataFrame) -> Html:
    """The paper's test on Dice in one line, and what its p is worth."""
    test = paired_test(results, "syn-real", "real")
    if math.isnan(test.p):
        return paragraph(f"Paired test of syn-real-X against real-X: none ({test.reason}).")
    sentence = (
        f"Over {test.n_pairs} pairs (fold, training site, tested site), syn-real-X minus real-X is "
        f"{format_value(test.mean_difference, 'dice', signed=True)} Dice points on average; one-sided Wilcoxon "
        f"signed-rank test that it is above 0: p = {format_p(test.p)}."
    )
    return join(paragraph(sentence), note(test.note))


def format_p(p: float) -> str:
    """A p value with two digits, or ``-``."""
    if math.isnan(p):
        return "-"
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def more_results(results: pd.DataFrame, summary: pd.DataFrame) -> Html:
    """The other metrics, the labels one by one, the tests of all metrics, the undefined cases and the conventions."""
    foreground = summary[summary["label"] == FOREGROUND]
    others = [join(heading(METRICS[name].title), metric_table(summary, name)) for name in ("hd95", "nsd", "iou")]
    return join(
        picture(scores_figure(foreground, "dice", "Dice, %", 100.0), "Dice with 95 % intervals; blue: syn-real."),
        *others,
        _label_tables(summary),
        heading("Tests of every metric"),
        tests_table(results),
        heading("Cases behind the numbers"),
        _counts_table(foreground),
        heading("Conventions"),
        element("ul", join(*(element("li", text) for text in CONVENTIONS))),
    )


def _label_tables(summary: pd.DataFrame) -> Html:
    labels = [label for label in summary["label"].unique() if label != FOREGROUND]
    if len(labels) < 2:
        return Html("")
    return join(*(join(heading(f"Label {label}"), metric_table(summary, "dice", label)) for label in labels))


def tests_table(results: pd.DataFrame) -> Html:
    """The paired test of every metric, with p corrected for testing several."""
    tests = [paired_test(results, "syn-real", "real", metric) for metric in METRICS]
    corrected = bonferroni([test.p for test in tests])
    rows = [
        [
            METRICS[test.metric].title,
            str(test.n_pairs),
            format_value(test.mean_difference, test.metric, signed=True),
            "-" if math.isnan(test.effect) else f"{test.effect:+.2f}",
            format_p(test.p) if not test.reason else test.reason,
            format_p(p_corrected),
        ]
        for test, p_corrected in zip(tests, corrected, strict=True)
    ]
    header = ["Metric", "pairs", "syn-real-X minus real-X", "effect", "p", "p, Bonferroni"]
    caption = (
        "One-sided Wilcoxon signed-rank tests that syn-real-X is better than real-X; effect: matched-pairs "
        "rank-biserial correlation, +1 where syn-real-X is better in every pair. They are not independent either."
    )
    return table(header, rows, caption)


def _counts_table(foreground: pd.DataFrame) -> Html:
    chosen = foreground[foreground["metric"] == "dice"]
    if chosen.empty:
        return absent("No cases.")
    rows = [
        [row["model"], row["tested_on"], str(row["n_folds"]), str(row["n_cases"]), str(row["n_undefined"])]
        for row in chosen.to_dict("records")
    ]
    return table(["Model", "tested on", "folds", "cases", "undefined (case, label) pairs"], rows)
