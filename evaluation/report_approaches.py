"""The report's sections on what the experiment is compared with: approaches, scaling, federated training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.approaches import APPROACHES, OURS, Comparison, ScalingPoint, compare, scaling_curve
from evaluation.report_approaches_pictures import rounds_figure, scaling_figure
from evaluation.report_html import Html, details, element, heading, join, note, paragraph, picture, table
from evaluation.report_results import format_p, verdict
from evaluation.report_run import RunFiles, StageFolder, read_curves, read_mapping
from evaluation.results import format_value, write_table
from evaluation.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

ROUNDS_STAGES = {"fedavg": "FedAvg", "fedprox": "FedProx", "fedbn": "FedBN"}
BEST_MARK = "★"


def is_baseline_run(files: RunFiles) -> bool:
    """Whether something was trained across sites and no generator was: nothing of the main experiment is missing."""
    across = any(files.stage_folders(stage) for stage in (*ROUNDS_STAGES, "dsl"))
    return across and not files.stage_folders("generator")


def approaches_section(results: pd.DataFrame) -> Html | None:
    """One row an approach; None where there is nothing to compare with."""
    found = compare(results)
    if len(found) < 2:
        return None
    sites = sorted({site for row in found for site in row.by_site})
    best = {site: max(_shown(row, site) for row in found if _deployable(row) and site in row.by_site) for site in sites}
    rows = [_approach_row(row, sites, best) for row in found]
    header = [
        "A site that uses",
        *(f"gets at {site}" for site in sites),
        "mean",
        "autoshare minus it",
        "p",
        "p, Bonferroni",
    ]
    caption = (
        "Dice, %, of the model that a site would use on its own test images, with 95 % intervals; the difference is "
        "the mean over sites, with its 95 % interval; p: one-sided Wilcoxon signed-rank test over pairs (fold, site). "
        f"{BEST_MARK}: a site's best among what can be deployed."
    )
    remarks = sorted({row.test.note for row in found if row.test is not None and row.test.note})
    return join(table(header, rows, caption), *(note(remark) for remark in remarks))


def _deployable(row: Comparison) -> bool:
    return row.approach != "real-all"


def _shown(row: Comparison, site: str) -> float:
    """Rounded as it is shown, so that equal-looking values are marked together."""
    return round(100 * row.by_site[site].mean, 1)


def _approach_row(row: Comparison, sites: Sequence[str], best: Mapping[str, float]) -> list[str]:
    words = APPROACHES[row.approach]
    cells: list[str] = [element("strong", words) if row.approach == OURS else words]
    for site in sites:
        if site not in row.by_site:
            cells.append("-")
            continue
        mark = f" {BEST_MARK}" if _deployable(row) and _shown(row, site) == best[site] else ""
        cells.append(join(f"{format_value(row.by_site[site].mean, 'dice')}{mark}", _small(row.by_site[site])))
    cells.append(format_value(row.mean, "dice"))
    if row.difference is None or row.test is None:
        return [*cells, "", "", ""]
    difference = f"{format_value(row.difference.mean, 'dice', signed=True)} ({verdict(row.difference)})"
    return [
        *cells,
        join(difference, _small(row.difference, signed=True)),
        format_p(row.test.p),
        format_p(row.p_corrected),
    ]


def _small(interval: Interval, *, signed: bool = False) -> Html:
    if math.isnan(interval.low):
        return element("small", "no interval")
    low, high = (format_value(value, "dice", signed=signed) for value in (interval.low, interval.high))
    return element("small", f"[{low}, {high}]")


def scaling_section(files: RunFiles) -> Html | None:
    """The gain against the number of contributing sites; None where the run is no scaling study."""
    points = scaling_points(files)
    if not points:
        return None
    rows = [
        [point.union, str(point.n_sites), *(_gain_cell(gained) for gained in (point.own_test, point.all_tests))]
        for point in points
    ]
    caption = (
        "Dice points that fine-tuning from a union's synthetic images gains over training on own images alone, mean "
        "over all sites (members of the union or not), with 95 % intervals."
    )
    header = ["Union", "contributing sites", "on the site's own test images", "on all sites' test images"]
    return join(picture(scaling_figure(points), "Gain against contributing sites"), table(header, rows, caption))


def scaling_points(files: RunFiles) -> list[ScalingPoint]:
    """The points of the curve over all chosen folds."""
    described = [read_mapping(files.folder(fold) / "scaling.json") for fold in files.folds]
    unions = next((content["unions"] for content in described if content.get("unions")), None)
    if not unions or files.results is None or files.results.empty:
        return []
    return scaling_curve(files.results, unions)


def write_scaling(files: RunFiles, path: Path) -> None:
    """``scaling.csv``: a row a union, gains as fractions; nothing where the run is no scaling study."""
    import pandas as pd

    rows = [
        {"union": point.union, "n_sites": point.n_sites, "tested": tested, "gain": gained.mean, "low": gained.low}
        | {"high": gained.high, "interval_kind": gained.kind}
        for point in scaling_points(files)
        for tested, gained in (("own site", point.own_test), ("all sites", point.all_tests))
    ]
    if rows:
        write_table(path, pd.DataFrame(rows))


def _gain_cell(interval: Interval) -> Html:
    return join(format_value(interval.mean, "dice", signed=True), _small(interval, signed=True))


def federated_section(files: RunFiles) -> Html | None:
    """Rounds, what crossed borders, and who was left out; None where nothing was trained across sites."""
    parts = [
        _rounds_part(title, folder) for stage, title in ROUNDS_STAGES.items() for folder in files.stage_folders(stage)
    ]
    parts += [_dsl_part(folder) for folder in files.stage_folders("dsl")]
    shown = [part for part in parts if part]
    return join(*shown) if shown else None


def _rounds_part(title: str, folder: StageFolder) -> Html:
    summary, curve = read_mapping(folder.path / "summary.json"), read_curves(folder.path / "curves.jsonl")
    if not summary or not curve:
        return Html("")
    best = int(summary["best_round"])
    sentence = (
        f"{summary['rounds']} rounds, local epochs in each: {summary['local_epochs']}; the averaged model of round "
        f"{best} was chosen. Every site sent and received {_megabytes(summary['bytes_up'])} a round (momentum: "
        f"{summary['optimizer']}). Weights: {_weights(summary['weights'])}."
    )
    left_out = [
        f"Round {item['round']} went on without site {item['site']}: {item['why']}" for item in summary["left_out"]
    ]
    return join(
        heading(f"{title}, fold {folder.fold}"),
        picture(rounds_figure(curve, best), f"{title}: validation of the averaged model; the line marks round {best}"),
        paragraph(sentence),
        element("ul", join(*(element("li", text) for text in left_out))) if left_out else "",
    )


def _weights(weights: Mapping[str, Any]) -> str:
    return ", ".join(f"{site} {100 * float(weight):.1f} %" for site, weight in sorted(weights.items()))


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _dsl_part(folder: StageFolder) -> Html:
    card = folder.path / "CARD.md"
    if not card.is_file():
        return Html("")
    text = element("pre", card.read_text(encoding="utf-8", errors="replace"))
    return join(heading(f"DSL, fold {folder.fold}"), details("What left the sites", text))
