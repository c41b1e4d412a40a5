"""The report's sections that compare: what a site gets from each approach, and the gain by contributing sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from evaluation.approaches import (
    APPROACHES,
    OURS,
    ScalingPoint,
    is_deployable,
    scaling_curve,
)
from evaluation.report.approach_pictures import scaling_figure
from evaluation.report.html import Html, element, heading, join, picture, table
from evaluation.report.results import BEST_MARK, JUDGED, format_p, kinds_in_words
from evaluation.report.run import RunFiles, read_mapping
from evaluation.results import format_value, write_table
from evaluation.statistics import Interval
from evaluation.verdicts import Comparison


def approaches_section(files: RunFiles) -> Html | None:
    """What a site gets from each approach, and autoshare against each; None where there is nothing to compare."""
    found = files.verdicts.comparisons if files.verdicts else ()
    if len(found) < 2:
        return None
    sites = sorted({site for row in found for site in row.by_site})
    return join(_scores_table(found, sites), _differences_table(found, sites), _verdicts_table(found))


def _scores_table(found: Sequence[Comparison], sites: Sequence[str]) -> Html:
    def shown(row: Comparison, site: str) -> float:  # rounded as it is shown, so that equal values are marked together
        return round(100 * row.by_site[site].mean, 1)

    in_use = [row for row in found if is_deployable(row.approach)]
    best = {site: max((shown(row, site) for row in in_use if site in row.by_site), default=None) for site in sites}
    rows = []
    for row in found:
        words = APPROACHES[row.approach]
        cells = [element("strong", words) if row.approach == OURS else words]
        for site in sites:
            interval = row.by_site.get(site)
            if interval is None:
                cells.append("-")
                continue
            is_best, score = row in in_use and shown(row, site) == best[site], format_value(interval.mean, "dice")
            cells.append(join(element("strong", f"{BEST_MARK} {score}") if is_best else score, _small(interval)))
        rows.append([*cells, format_value(row.mean, "dice")])
    caption = (
        "Dice, %, of the model that a site would use, on that site's test images, with 95 % intervals. Mean: over "
        f"sites. {BEST_MARK} and bold: the best at this site without pooling real images."
    )
    return table(["A site that uses", *(f"gets at {site}" for site in sites), "mean"], rows, caption)


def _differences_table(found: Sequence[Comparison], sites: Sequence[str]) -> Html:
    """Autoshare minus each other approach, site by site."""
    compared = [row for row in found if row.difference_by_site]
    if not compared:
        return Html("")
    kinds = kinds_in_words([gained.kind for row in compared for gained in row.difference_by_site.values()])
    rows = []
    for row in compared:
        cells = [APPROACHES[row.approach]]
        for site in sites:
            gained = row.difference_by_site.get(site)
            cells.append("-" if gained is None or math.isnan(gained.mean) else _gain_cell(gained))
        rows.append(cells)
    caption = (
        f"Dice points, paired by patient, with 95 % intervals ({kinds}). Each interval holds 95 % by itself; the table "
        "makes no verdicts."
    )
    return join(
        heading("Autoshare minus each other approach, at each site"),
        table(["Autoshare minus", *(f"at {site}" for site in sites)], rows, caption),
    )


def _verdicts_table(found: Sequence[Comparison]) -> Html:
    """The mean over sites of each difference, judged."""
    rows = []
    for row in found:
        judged = row.over_sites
        if judged is not None:
            p = format_p(judged.p) if judged.verdict in JUDGED else "-"
            rows.append([APPROACHES[row.approach], _gain_cell(judged.interval), judged.verdict, p])
    if not rows:
        return Html("")
    caption = (
        "Dice points, mean over sites. Two-sided paired t test over patients; interval and p are corrected for the "
        "number of all verdicts of this report, by the same rule. Of two trainings on the same real images only the "
        "one that trains as long as autoshare is a baseline."
    )
    header = ["Autoshare minus", "mean over sites [corrected 95 % interval]", "verdict", "p, corrected"]
    return join(heading("Autoshare against each other approach, over all sites"), table(header, rows, caption))


def _gain_cell(gained: Interval) -> Html:
    return join(format_value(gained.mean, "dice", signed=True), _small(gained, signed=True))


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
        [
            point.union,
            ", ".join(point.sites),
            str(point.n_sites),
            _gain_cell(point.own_test),
            _gain_cell(point.all_tests),
        ]
        for point in points
    ]
    kinds = kinds_in_words([gained.kind for point in points for gained in (point.own_test, point.all_tests)])
    caption = (
        f"Dice points that fine-tuning from a union's synthetic images gains over {points[0].control}-X (own images "
        f"alone), mean over all sites (members of the union or not), with 95 % intervals ({kinds}); no verdicts."
    )
    header = ["Union", "its sites", "contributing sites", "on the site's own test images", "on all sites' test images"]
    shown = picture(scaling_figure(points), "Dice gain against contributing sites; open marks: named unions")
    return join(shown, table(header, rows, caption))


def scaling_points(files: RunFiles) -> list[ScalingPoint]:
    """The points of the curve over all chosen folds."""
    described = [read_mapping(files.folder(fold) / "scaling.json") for fold in files.folds]
    named = [content["unions"] for content in described if isinstance(content.get("unions"), list)]
    unions = [union for union in (named[0] if named else []) if {"name", "sites"} <= set(union)]
    if not unions or files.results is None or files.results.empty:
        return []
    return scaling_curve(files.results, unions)


def write_scaling(files: RunFiles, path: Path) -> None:
    """``scaling.csv``: a row a union, gains as fractions; nothing where the run is no scaling study."""
    import pandas as pd

    rows = [
        {
            "union": point.union,
            "n_sites": point.n_sites,
            "tested": tested,
            "gain": gained.mean,
            "low": gained.low,
            "high": gained.high,
            "interval_kind": gained.kind,
            "control": point.control,
        }
        for point in scaling_points(files)
        for tested, gained in (("own site", point.own_test), ("all sites", point.all_tests))
    ]
    if rows:
        write_table(path, pd.DataFrame(rows))
