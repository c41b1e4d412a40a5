"""The report's sections that compare: what a site gets from each approach, and the gain by contributing sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from evaluation.approaches import (
    APPROACHES,
    OURS,
    Comparison,
    ScalingPoint,
    compare,
    is_deployable,
    scaling_curve,
)
from evaluation.report.approach_pictures import scaling_figure
from evaluation.report.html import Html, element, heading, join, note, picture, table
from evaluation.report.results import BEST_MARK, format_p, kinds_in_words, verdict
from evaluation.report.run import RunFiles, read_mapping
from evaluation.results import format_value, write_table
from evaluation.statistics import DEPENDENCE_NOTE, Interval

GAIN_MARK, LOSS_MARK = "▲", "▼"


def approaches_section(files: RunFiles) -> Html | None:
    """What a site gets from each approach, and autoshare against each; None where there is nothing to compare."""
    found = [] if files.results is None or files.results.empty else compare(files.results)
    if len(found) < 2:
        return None
    sites = sorted({site for row in found for site in row.by_site})
    return join(_scores_table(found, sites), _differences_table(found, sites), _tests_table(found))


def _scores_table(found: Sequence[Comparison], sites: Sequence[str]) -> Html:
    in_use = [row for row in found if is_deployable(row.approach)]
    best = {site: max((_shown(row, site) for row in in_use if site in row.by_site), default=None) for site in sites}
    rows = []
    for row in found:
        cells = [_name(row)]
        for site in sites:
            is_best = row in in_use and site in row.by_site and _shown(row, site) == best[site]
            cells.append(_score_cell(row.by_site.get(site), is_best=is_best))
        rows.append([*cells, format_value(row.mean, "dice")])
    caption = (
        "Dice, %, of the model that a site would use, on that site's test images, with 95 % intervals; mean: over "
        f"sites. {BEST_MARK} and bold: a site's best without pooling real images."
    )
    return table(["A site that uses", *(f"gets at {site}" for site in sites), "mean"], rows, caption)


def _name(row: Comparison) -> str:
    words = APPROACHES[row.approach]
    return element("strong", words) if row.approach == OURS else words


def _shown(row: Comparison, site: str) -> float:
    """Rounded as it is shown, so that equal-looking values are marked together."""
    return round(100 * row.by_site[site].mean, 1)


def _score_cell(interval: Interval | None, *, is_best: bool) -> str:
    if interval is None:
        return "-"
    shown = format_value(interval.mean, "dice")
    return join(element("strong", f"{BEST_MARK} {shown}") if is_best else shown, _small(interval))


def _differences_table(found: Sequence[Comparison], sites: Sequence[str]) -> Html:
    """Autoshare minus each other approach, site by site."""
    compared = [row for row in found if row.difference is not None]
    if not compared:
        return Html("")
    rows = [
        [APPROACHES[row.approach], *(_difference_cell(row.difference_by_site.get(site)) for site in sites)]
        for row in compared
    ]
    caption = (
        f"Dice points, paired, with 95 % intervals ({_kinds_of(compared)}); {GAIN_MARK}: the interval is above 0, "
        f"{LOSS_MARK}: below 0, no mark: no clear difference. Intervals are not corrected for their number."
    )
    return join(
        heading("Autoshare minus each other approach, at each site"),
        table(["Autoshare minus", *(f"at {site}" for site in sites)], rows, caption),
    )


def _difference_cell(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.mean):
        return "-"
    mark = {"a gain": f"{GAIN_MARK} ", "a loss": f"{LOSS_MARK} "}.get(verdict(interval), "")
    return join(f"{mark}{format_value(interval.mean, 'dice', signed=True)}", _small(interval, signed=True))


def _kinds_of(compared: Sequence[Comparison]) -> str:
    return kinds_in_words([gained.kind for row in compared for gained in row.difference_by_site.values()])


def _tests_table(found: Sequence[Comparison]) -> Html:
    """The mean over sites, and the paired tests with their correction."""
    rows = []
    for row in found:
        if row.difference is None or row.test is None:
            continue
        test = row.test
        gained = f"{format_value(row.difference.mean, 'dice', signed=True)} ({verdict(row.difference)})"
        effect = "-" if math.isnan(test.effect) else f"{test.effect:+.2f}"
        p = format_p(test.p) if not test.reason else test.reason
        cells = [APPROACHES[row.approach], join(gained, _small(row.difference, signed=True)), str(test.n_pairs)]
        rows.append([*cells, effect, p, format_p(row.p_corrected)])
    if not rows:
        return Html("")
    caption = (
        "Dice points, mean over sites, with 95 % intervals; p: one-sided Wilcoxon signed-rank test over pairs (fold, "
        "site) that autoshare is better, and p times the number of tests (Bonferroni), which controls the chance of a "
        "single false claim; near 1: no sign that autoshare is better. Effect: matched-pairs rank-biserial "
        "correlation, +1 where autoshare is better in every pair, -1 where the other is."
    )
    header = ["Autoshare minus", "mean over sites", "pairs", "effect", "p", "p, Bonferroni"]
    title = heading("Autoshare against each other approach, over all sites")
    return join(title, table(header, rows, caption), note(DEPENDENCE_NOTE))


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
        "Dice points that fine-tuning from a union's synthetic images gains over training on own images alone, mean "
        f"over all sites (members of the union or not), with 95 % intervals ({kinds})."
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
        {"union": point.union, "n_sites": point.n_sites, "tested": tested, "gain": gained.mean, "low": gained.low}
        | {"high": gained.high, "interval_kind": gained.kind}
        for point in scaling_points(files)
        for tested, gained in (("own site", point.own_test), ("all sites", point.all_tests))
    ]
    if rows:
        write_table(path, pd.DataFrame(rows))


def _gain_cell(interval: Interval) -> Html:
    return join(format_value(interval.mean, "dice", signed=True), _small(interval, signed=True))
