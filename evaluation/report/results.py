"""The report's answer: the Dice table, what sharing gained each site, the paired test, and the other metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from evaluation.approaches import COMPARED, OURS, at_own_site
from evaluation.report.html import (
    Html,
    absent,
    bullets,
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
from evaluation.statistics import Interval, PairedTest, bonferroni, gain, paired_test

if TYPE_CHECKING:
    import pandas as pd

BEST_MARK = "★"
MANY_MODELS = 16  # from here the tables of the other metrics open on a click
CONVENTIONS = (
    "Each label of each test case is scored at the image's own resolution. A fold's value is the mean over cases, then "
    "over labels. The tables show the mean over folds.",
    "HD95 is the 95th percentile of the distances between the two borders, both directions pooled, in mm (in pixels "
    "where images have no spacing). NSD is the share of border pixels within the tolerance of the other border.",
    "If neither the reference nor the prediction has a label, the score is undefined: it is left out of the means and "
    "counted as undefined.",
    "If only one of the two has a label, Dice, IoU and NSD are 0 and HD95 is the image's diagonal. So a missed object "
    "never improves a mean.",
    "2D images that are stored as volumes of depth 1 are scored as 2D images.",
    "With one fold, the intervals come from its cases alone and do not include the variation between trainings.",
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
    sentences = bullets(gain_sentences(results), "answers")
    return join(sentences, test_statement(results), heading("Every model on every site"), table_of_models, missing)


def metric_table(summary: pd.DataFrame, metric: str, label: str = FOREGROUND) -> Html:
    """Models by approach down, tested sites across: mean and interval; the best in use and the own site marked."""
    chosen = summary[(summary["metric"] == metric) & (summary["label"] == label)]
    sites, best = sorted(chosen["tested_on"].unique()), best_cells(chosen, metric)
    cells = {}
    for row in chosen.to_dict("records"):
        key = row["model"], row["tested_on"]
        shown = format_value(row["mean"], metric)
        mean = element("strong", f"{BEST_MARK} {shown}") if key in best else shown
        spread = "" if math.isnan(row["std"]) else f"± {format_value(row['std'], metric)} "
        marked = element("span", mean, "own") if row["trained_on"] == row["tested_on"] else mean
        cells[key] = join(marked, element("small", spread + format_interval(row, metric)))
    groups = {
        words: [[model, *(cells.get((model, site), "-") for site in sites)] for model in models]
        for words, models in by_approach(chosen).items()
    }
    unit = "%" if METRICS[metric].unit == "fraction" else METRICS[metric].unit
    spread = " ± standard deviation over folds" if chosen["std"].notna().any() else ""
    caption = (
        f"{METRICS[metric].title}, {unit}: mean{spread} [95 % interval: {kinds_in_words(chosen['interval_kind'])}]. "
        f"{METRICS[metric].direction.capitalize()} is better. {BEST_MARK} and bold: the best at this site without "
        "pooling real images. Framed: the model's own site."
    )
    return table(["Model", *(f"tested on {site}" for site in sites)], groups, caption)


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
    sentences = []
    for site in sorted(set(results["trained_on"]) & set(tested)):
        phrases = []
        others = [other for other in tested if other != site]
        for tested_on, images in (([site], "its own test images"), (others, "the other sites' test images")):
            if not tested_on:
                continue
            gained = gain(results, f"syn-real-{site}", f"real-{site}", tested_on)
            mean, low, high = (format_value(v, "dice", signed=True) for v in (gained.mean, gained.low, gained.high))
            interval = "no interval yet" if math.isnan(gained.low) else f"95 % interval {low} to {high}, {gained.kind}"
            phrases.append(f"{mean} points on {images} ({interval}: {verdict(gained)})")
        text = f"compared with training on its own images alone, sharing changed Dice by {' and by '.join(phrases)}."
        if not {f"syn-real-{site}", f"real-{site}"} <= models:
            text = "syn-real and real are not both evaluated yet."
        sentences.append(join(element("strong", f"Site {site}:"), text))
    return sentences


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
        return paragraph(f"A paired test of syn-real-X against real-X is not possible: {test.reason}.")
    sentence = (
        f"Over {test.n_pairs} pairs (fold, training site, tested site), syn-real-X minus real-X is "
        f"{format_value(test.mean_difference, 'dice', signed=True)} Dice points on average. The one-sided Wilcoxon "
        f"signed-rank test that it is above 0 gives p = {format_p(test.p)}."
    )
    return join(paragraph(sentence), note(test.note))


def format_p(p: float) -> str:
    """A p value with two digits, or ``-``."""
    if math.isnan(p):
        return "-"
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def test_cells(test: PairedTest, p_corrected: float) -> list[str]:
    """The cells under ``effect``, ``p`` and ``p, Bonferroni``."""
    effect = "-" if math.isnan(test.effect) else f"{test.effect:+.2f}"
    return [effect, test.reason or format_p(test.p), format_p(p_corrected)]


def more_results_section(files: RunFiles) -> Html:
    """The other metrics, the labels one by one, the tests of all metrics, the undefined cases and the conventions."""
    if files.results is None or files.summary is None:
        return absent("No results yet.")
    results, summary = files.results, files.summary
    foreground = summary[summary["label"] == FOREGROUND]
    many = foreground["model"].nunique() >= MANY_MODELS

    def titled(title: str, content: Html) -> Html:
        return details(title, content) if many else join(heading(title), content)

    # where all models are too many to be told apart, the picture shows what each approach gives a site at home
    own = summarise(at_own_site(results, COMPARED)) if many else summary
    shown, of_what = own[own["label"] == FOREGROUND], " of the model that a site would use" if many else ""
    scores = scores_figure(shown, "dice", "Dice, %", 100.0) if len(shown) else None
    labels = [str(label) for label in summary["label"].unique() if label != FOREGROUND]
    counted = foreground[foreground["metric"] == "dice"]
    counts = counted[["model", "tested_on", "n_folds", "n_cases", "n_undefined"]].astype(str).to_numpy().tolist()
    counts_header = ["Model", "tested on", "folds", "cases", "undefined (case, label) pairs"]
    return join(
        picture(scores, f"Dice{of_what} with 95 % intervals; blue: {OURS}.") if scores else "",
        *(titled(METRICS[name].title, metric_table(summary, name)) for name in ("hd95", "nsd", "iou")),
        *(titled(f"Label {name}", metric_table(summary, "dice", name)) for name in labels if len(labels) > 1),
        tests_table(results) if results["model"].astype(str).str.startswith(f"{OURS}-").any() else "",
        titled("Cases behind the numbers", table(counts_header, counts) if counts else absent("No cases.")),
        heading("Conventions"),
        bullets(CONVENTIONS),
    )


def tests_table(results: pd.DataFrame) -> Html:
    """The paired test of every metric, with p corrected for testing several."""
    tests = [paired_test(results, "syn-real", "real", metric) for metric in METRICS]
    rows = [
        [
            METRICS[test.metric].title,
            str(test.n_pairs),
            format_value(test.mean_difference, test.metric, signed=True),
            *test_cells(test, p_corrected),
        ]
        for test, p_corrected in zip(tests, bonferroni([test.p for test in tests]), strict=True)
    ]
    header = ["Metric", "pairs", "syn-real-X minus real-X", "effect", "p", "p, Bonferroni"]
    caption = (
        "One-sided Wilcoxon signed-rank tests that syn-real-X is better than real-X. Effect: matched-pairs "
        "rank-biserial correlation, +1 where syn-real-X is better in every pair. Here too the pairs are not "
        "independent."
    )
    return join(heading("Tests of every metric"), table(header, rows, caption))
