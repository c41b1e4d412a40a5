"""The report's answer: the Dice table, what sharing gained each site, the paired test, and the other metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.approaches import COMPARED, OURS, at_own_site
from evaluation.report.html import (
    Html,
    absent,
    details,
    element,
    heading,
    join,
    note,
    paragraph,
    picture,
    table,
)
from evaluation.report.pictures import scores_figure
from evaluation.report.run import RunFiles
from evaluation.results import FOREGROUND, best_cells, by_approach, format_interval, format_value, summarise
from evaluation.segmentation import METRICS
from evaluation.statistics import Interval, bonferroni, gain, paired_test

if TYPE_CHECKING:
    import pandas as pd

BEST_MARK = "★"
MANY_MODELS = 16  # from here the tables of the other metrics open on a click
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


def answer_section(files: RunFiles) -> Html:
    """The first screen: where there is syn-real, what it gained and the test; then Dice of every model."""
    if files.results is None or files.summary is None:
        return absent("No results yet: no chosen fold has finished its evaluate stage.")
    results, table_of_models = files.results, metric_table(files.summary, "dice")
    without = sorted(set(files.folds) - set(results["fold"]))
    missing = absent(f"Not evaluated yet: fold {', '.join(map(str, without))}.") if without else ""
    if not results["model"].astype(str).str.startswith("syn-real-").any():
        return join(table_of_models, missing)
    sentences = element("ul", join(*(element("li", sentence) for sentence in gain_sentences(results))), "answers")
    return join(sentences, test_statement(results), heading("Every model on every site"), table_of_models, missing)


def metric_table(summary: pd.DataFrame, metric: str, label: str = FOREGROUND) -> Html:
    """Models by approach down, tested sites across: mean and interval; the best in use and the own site marked."""
    chosen = summary[(summary["metric"] == metric) & (summary["label"] == label)]
    sites, best = sorted(chosen["tested_on"].unique()), best_cells(chosen, metric)
    cells = {}
    for row in chosen.to_dict("records"):
        key = row["model"], row["tested_on"]
        cells[key] = _metric_cell(row, metric, is_best=key in best)
    groups = {
        words: [[model, *(cells.get((model, site), "-") for site in sites)] for model in models]
        for words, models in by_approach(chosen).items()
    }
    header = ["Model", *(f"tested on {site}" for site in sites)]
    return table(header, groups, _table_caption(chosen, metric))


def _metric_cell(row: Mapping[Any, Any], metric: str, *, is_best: bool) -> Html:
    shown = format_value(row["mean"], metric)
    mean = element("strong", f"{BEST_MARK} {shown}") if is_best else shown
    marked = element("span", mean, "own") if row["trained_on"] == row["tested_on"] else mean
    spread = "" if math.isnan(row["std"]) else f"± {format_value(row['std'], metric)} "
    return join(marked, element("small", spread + format_interval(row, metric)))


def _table_caption(chosen: pd.DataFrame, metric: str) -> str:
    unit = "%" if METRICS[metric].unit == "fraction" else METRICS[metric].unit
    spread = " ± standard deviation over folds" if chosen["std"].notna().any() else ""
    return (
        f"{METRICS[metric].title}, {unit}: mean{spread} [95 % interval: {kinds_in_words(chosen['interval_kind'])}]. "
        f"{METRICS[metric].direction.capitalize()} is better. {BEST_MARK} and bold: the site's best without pooling "
        "real images; framed: the model's own site."
    )


def kinds_in_words(kinds: Iterable[str]) -> str:
    """``bootstrap over 20 to 31 cases``: sites differ in their number of cases only."""
    counts: dict[str, set[int]] = {}
    for kind in sorted(set(kinds)):
        counts.setdefault(re.sub(r"\d+", "{}", kind), set()).update(map(int, re.findall(r"\d+", kind)))
    ranges = {pattern: dict.fromkeys((min(found), max(found))) for pattern, found in counts.items() if found}
    return ", ".join(pattern.replace("{}", " to ".join(map(str, ends))) for pattern, ends in ranges.items())


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


def more_results_section(files: RunFiles) -> Html:
    """The other metrics, the labels one by one, the tests of all metrics, the undefined cases and the conventions."""
    if files.results is None or files.summary is None:
        return absent("No results yet.")
    results, summary = files.results, files.summary
    foreground = summary[summary["label"] == FOREGROUND]
    many = foreground["model"].nunique() >= MANY_MODELS
    folded = [_titled(METRICS[name].title, metric_table(summary, name), many) for name in ("hd95", "nsd", "iou")]
    folded += [_titled(f"Label {label}", metric_table(summary, "dice", label), many) for label in _several(summary)]
    has_ours = results["model"].astype(str).str.startswith(f"{OURS}-").any()
    return join(
        _scores_picture(results, foreground, many),
        *folded,
        join(heading("Tests of every metric"), tests_table(results)) if has_ours else "",
        _titled("Cases behind the numbers", _counts_table(foreground), many),
        heading("Conventions"),
        element("ul", join(*(element("li", text) for text in CONVENTIONS))),
    )


def _titled(title: str, content: Html, many: bool) -> Html:
    return details(title, content) if many else join(heading(title), content)


def _several(summary: pd.DataFrame) -> list[str]:
    labels = [str(label) for label in summary["label"].unique() if label != FOREGROUND]
    return labels if len(labels) > 1 else []


def _scores_picture(results: pd.DataFrame, foreground: pd.DataFrame, many: bool) -> Html:
    """All models, or, where they are too many to be told apart, what each approach gives a site on its own images."""
    shown, of_what = foreground, ""
    if many:
        summary = summarise(at_own_site(results, COMPARED))
        shown, of_what = summary[summary["label"] == FOREGROUND], " of the model that a site would use"
    caption = f"Dice{of_what} with 95 % intervals; blue: {OURS}."
    return picture(scores_figure(shown, "dice", "Dice, %", 100.0), caption) if len(shown) else Html("")


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
