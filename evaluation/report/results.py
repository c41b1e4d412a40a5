"""The report's answer: what sharing gained each site, the Dice table, faults of trainings, and the other metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from evaluation.approaches import COMPARED, LOCAL, LOCAL_LONG, OURS, at_own_site
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
from evaluation.statistics import GAIN, LOSS, UNCLEAR, Judgement, ScoreTable, interval
from evaluation.verdicts import SiteGain, Verdicts

if TYPE_CHECKING:
    import pandas as pd

BEST_MARK = "★"
MANY_MODELS = 16  # from here the tables of the other metrics open on a click
JUDGED = (GAIN, LOSS, UNCLEAR)
CONVENTIONS = (
    "Each label of each test case is scored at the image's own resolution. A patient's score is the mean over their "
    "images. The tables show the mean over patients, then over labels. docs/statistics.md says what each interval and "
    "each verdict means.",
    "HD95 is the 95th percentile of the distances between the two borders, both directions pooled, in mm (in pixels "
    "where images have no spacing). NSD is the share of border pixels within the tolerance of the other border.",
    "If neither the reference nor the prediction has a label, the score is undefined: it is left out of the means and "
    "counted as undefined.",
    "If only one of the two has a label, Dice, IoU and NSD are 0 and HD95 is the image's diagonal. So a missed object "
    "never improves a mean.",
    "2D images that are stored as volumes of depth 1 are scored as 2D images.",
)


def answer_section(files: RunFiles) -> Html:
    """The first screen: what sharing gained each site and how sure that is; then Dice of every model."""
    if files.results is None or files.summary is None or files.verdicts is None:
        return absent("No results yet: no chosen fold has finished its evaluate stage.")
    results, table_of_models = files.results, metric_table(files.summary, "dice")
    without = sorted(set(files.folds) - set(results["fold"]))
    missing = absent(f"Not evaluated yet: fold {', '.join(map(str, without))}.") if without else ""
    faults = faults_of_trainings(files)
    if not files.verdicts.gains:
        return join(faults, table_of_models, missing)
    sentences = bullets(
        [gain_sentence(gain, is_alone=_is_alone(files, gain.site)) for gain in files.verdicts.gains], "answers"
    )
    about = note(" ".join(about_verdicts(files.verdicts, results)))
    return join(sentences, about, faults, heading("Every model on every site"), table_of_models, missing)


def _is_alone(files: RunFiles, site: str) -> bool:
    """Whether nobody else's images came to a site: it is the only one, or all others' packages were refused."""
    trained = {gain.site for gain in files.verdicts.gains} if files.verdicts else set()
    folders = files.stage_folders("share")
    sharing = {folder.site for folder in folders if (folder.path / "manifest.json").is_file()}
    return not ((sharing if folders else trained) - {site})


def gain_sentence(gain: SiteGain, *, is_alone: bool) -> Html:
    """In plain language: a site's network with sharing against its better control."""
    name = element("strong", f"Site {gain.site}:")
    if gain.control is None or gain.own_images is None:
        return join(name, f"{OURS}-{gain.site} and {LOCAL}-{gain.site} are not both evaluated yet.")
    what = "pretraining on synthetic images of its own patients" if is_alone else "sharing"
    phrases = [_judged_in_words(gain.own_images, "its own test images")]
    if gain.other_images is not None:
        phrases.append(_judged_in_words(gain.other_images, "the other sites' test images"))
    if gain.unseen_images is not None:
        phrases.append(_judged_in_words(gain.unseen_images, "images of sites that took no part"))
    words = "trained as long in all" if gain.control.startswith(f"{LOCAL_LONG}-") else "trained once"
    compared = f"compared with {gain.control} (own images only, {words})"
    return join(name, f"{compared}, {what} changed Dice by {' and by '.join(phrases)}.")


def _judged_in_words(judged: Judgement, images: str) -> str:
    points, low, high = (
        format_value(value, "dice", signed=True)
        for value in (judged.interval.mean, judged.interval.low, judged.interval.high)
    )
    if judged.verdict not in JUDGED:
        return f"{points} points on {images} ({judged.verdict})"
    numbers = f"corrected 95 % interval {low} to {high}, {judged.interval.kind}, p = {format_p(judged.p)}"
    return f"{points} points on {images} ({numbers}: {judged.verdict})"


def about_verdicts(verdicts: Verdicts, results: pd.DataFrame) -> list[str]:
    """What the verdicts hold for, and what they do not say."""
    sentences, n_seeds = [], results["seed"].nunique()
    if verdicts.n_comparisons > 1:
        sentences.append(
            f"This report judges {verdicts.n_comparisons} comparisons. Their intervals and p are corrected for that "
            "number (Bonferroni): where nothing differs, about 5 % of reports or fewer hold any verdict."
        )
    sentences.append(
        f"The intervals count the patients and {n_seeds} trainings of each network."
        if n_seeds > 1
        else "Each network was trained with one seed. The verdicts hold for these trained networks: how much another "
        "seed would change is not known (general.n_seeds=3 measures it)."
    )
    if (results["model"] == LOCAL_LONG + "-" + results["trained_on"].astype(str)).any():
        sentences.append(
            f"{OURS}-X trains twice, on shared and then on own images. So its control is the better of {LOCAL}-X and "
            f"{LOCAL_LONG}-X, which trains as long in all; their validation patients decide which is better."
        )
    else:
        sentences.append(
            f"{OURS}-X trains twice, on shared and then on own images, and {LOCAL}-X once, as in the published "
            "comparison. So a part of the difference can come from the longer training alone. "
            "evaluation.real_long=true adds a control of equal length."
        )
    return sentences


def faults_of_trainings(files: RunFiles) -> Html:
    """Networks that must not serve in a comparison, and why; nothing where all trainings look sound."""
    if files.networks is None:
        return Html("")
    faulty = files.networks[files.networks["fault"] != ""].to_dict("records")
    if not faulty:
        return Html("")
    lines = [f"{row['model']}, fold {row['fold']}, seed {row['seed']}: it {row['fault']}." for row in faulty]
    title = "These trainings have a fault; no verdict rests on them"
    return join(paragraph(title + ":"), bullets([element("span", line, "failed") for line in lines]))


def metric_table(summary: pd.DataFrame, metric: str, label: str = FOREGROUND) -> Html:
    """Models by approach down, tested sites across: mean and interval; the best in use and the own site marked."""
    chosen = summary[(summary["metric"] == metric) & (summary["label"] == label)]
    sites, best = sorted(chosen["tested_on"].unique()), best_cells(chosen, metric)
    cells = {}
    for row in chosen.to_dict("records"):
        key = row["model"], row["tested_on"]
        shown = format_value(row["mean"], metric)
        mean = element("strong", f"{BEST_MARK} {shown}") if key in best else shown
        spread = "" if math.isnan(row["seed_spread"]) else f" ± {format_value(row['seed_spread'], metric)}"
        marked = element("span", mean, "own") if row["trained_on"] == row["tested_on"] else mean
        cells[key] = join(marked, element("small", format_interval(row, metric) + spread))
    groups = {
        words: [[model, *(cells.get((model, site), "-") for site in sites)] for model in models]
        for words, models in by_approach(chosen).items()
    }
    unit = "%" if METRICS[metric].unit == "fraction" else METRICS[metric].unit
    seeds = ", ± the standard deviation over seeds" if chosen["seed_spread"].notna().any() else ""
    caption = (
        f"{METRICS[metric].title}, {unit}: mean [95 % interval: {kinds_in_words(chosen['interval_kind'])}]{seeds}. "
        f"{METRICS[metric].direction.capitalize()} is better. {BEST_MARK} and bold: the best at this site without "
        "pooling real images; the mark is no test. Framed: the model's own site."
    )
    return table(["Model", *(f"tested on {site}" for site in sites)], groups, caption)


def kinds_in_words(kinds: Iterable[str]) -> str:
    """``t over 20 to 31 patients``: sites differ in their number of patients only; without those that are none."""
    counts: dict[str, set[int]] = {}
    all_kinds = set(kinds)
    for kind in sorted(kind for kind in all_kinds if not kind.startswith("none")):
        counts.setdefault(re.sub(r"\d+", "{}", kind), set()).update(map(int, re.findall(r"\d+", kind)))
    ranges = {pattern: dict.fromkeys((min(found), max(found))) for pattern, found in counts.items() if found}
    words = [pattern.replace("{}", " to ".join(map(str, ends))) for pattern, ends in ranges.items()]
    needed = {found.group(1) for kind in all_kinds if (found := re.search(r"at least (\d+)", kind))}
    return ", ".join([*words, *(f"none for fewer than {n} patients" for n in sorted(needed))])


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

    def titled(title: str, content: Html) -> Html:
        return details(title, content) if many else join(heading(title), content)

    # where all models are too many to be told apart, the picture shows what each approach gives a site at home
    own = summarise(at_own_site(results, COMPARED)) if many else summary
    shown, of_what = own[own["label"] == FOREGROUND], " of the model that a site would use" if many else ""
    scores = scores_figure(shown, "dice", "Dice, %", 100.0) if len(shown) else None
    labels = [str(label) for label in summary["label"].unique() if label != FOREGROUND]
    counted = foreground[foreground["metric"] == "dice"]
    counts = (
        counted[["model", "tested_on", "n_folds", "n_patients", "n_cases", "n_undefined"]]
        .astype(str)
        .to_numpy()
        .tolist()
    )
    counts_header = ["Model", "tested on", "folds", "patients", "cases", "undefined (case, label) pairs"]
    return join(
        picture(scores, f"Dice{of_what} with 95 % intervals; blue: {OURS}.") if scores else "",
        *(titled(METRICS[name].title, metric_table(summary, name)) for name in ("hd95", "nsd", "iou")),
        *(titled(f"Label {name}", metric_table(summary, "dice", name)) for name in labels if len(labels) > 1),
        metrics_table(results, files.verdicts) if files.verdicts else "",
        titled(
            "Patients and cases behind the numbers", table(counts_header, counts) if counts else absent("No cases.")
        ),
        heading("Conventions"),
        bullets(CONVENTIONS),
    )


def metrics_table(results: pd.DataFrame, verdicts: Verdicts) -> Html:
    """At each site, its network with sharing minus its control in every metric; intervals, no verdicts."""
    rows = []
    tables = {metric: ScoreTable.of(results, metric) for metric in METRICS}
    for gain in verdicts.gains:
        for metric in METRICS if gain.control else ():
            pair = {gain.site: f"{OURS}-{gain.site}"}, {gain.site: str(gain.control)}
            found = interval(tables[metric].difference(*pair))
            low, high = (format_value(value, metric, signed=True) for value in (found.low, found.high))
            shown = found.kind if math.isnan(found.low) else f"[{low}, {high}]"
            name = f"{METRICS[metric].title} ({METRICS[metric].direction} is better)"
            rows.append([gain.site, str(gain.control), name, format_value(found.mean, metric, signed=True), shown])
    if not rows:
        return Html("")
    caption = "On the site's own test images. Each interval holds 95 % by itself and is not corrected: no verdict."
    header = ["Site", "control", "metric", f"{OURS}-X minus control", "95 % interval"]
    return join(heading("Every metric against the control"), table(header, rows, caption))
