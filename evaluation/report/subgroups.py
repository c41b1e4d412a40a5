"""The report's section on subgroups of the patients."""

from __future__ import annotations

import math
from pathlib import Path

from evaluation.report.html import Html, element, join, paragraph, table
from evaluation.report.run import RunFiles, read_mapping
from evaluation.results import format_value, write_table
from evaluation.subgroups import MIN_PATIENTS, Subgroup, by_subgroup

ABOUT = (
    f"A subgroup of fewer than {MIN_PATIENTS} patients is counted and not scored. The subgroup with the lowest mean of "
    "its column is marked; with few patients that can be chance: look at the intervals."
)


def subgroups_section(files: RunFiles) -> Html | None:
    """Dice of each site's network by subgroup; None where no column was named (``data.subgroup_columns``)."""
    found = subgroups_of(files)
    if not found:
        return None
    rows = []
    for one in found:
        mean = format_value(one.dice.mean, "dice")
        shown = one.dice.kind if math.isnan(one.dice.low) else _bounds(one)
        name = element("strong", f"{one.value} (the worst)") if one.is_worst else one.value
        rows.append([one.site, one.model, one.column, name, str(one.n_patients), mean, shown])
    header = ["Site", "network", "column", "subgroup", "patients", "Dice, %", "95 % interval"]
    return join(paragraph(ABOUT), table(header, rows, "Dice on the site's test images, patients as units."))


def _bounds(one: Subgroup) -> str:
    return f"[{format_value(one.dice.low, 'dice')}, {format_value(one.dice.high, 'dice')}]"


def subgroups_of(files: RunFiles) -> list[Subgroup]:
    """Of the chosen folds; nothing where there are no results or no subgroups."""
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for folder in files.stage_folders("subgroups"):
        groups.setdefault(folder.site, {}).update(read_mapping(folder.path / "subgroups.json"))
    if files.results is None or files.results.empty:
        return []
    tested = set(files.results["tested_on"])
    return by_subgroup(files.results, {site: of_case for site, of_case in groups.items() if site in tested})


def write_subgroups(files: RunFiles, path: Path) -> None:
    """``subgroups.csv``: a row a subgroup, of those with enough patients; nothing where none was asked for."""
    import pandas as pd

    rows = [
        {"site": one.site, "model": one.model, "column": one.column, "value": one.value, "n_patients": one.n_patients}
        | {"dice": one.dice.mean, "low": one.dice.low, "high": one.dice.high, "is_worst": one.is_worst}
        for one in subgroups_of(files)
        if one.n_patients >= MIN_PATIENTS
    ]
    if rows:
        write_table(path, pd.DataFrame(rows))
