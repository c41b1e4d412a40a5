"""Numbers, durations, sizes and records as the report shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report.html import Html, picture, table
from evaluation.report.run import RunFiles

MAX_FIELDS_ACROSS = 8  # what fits a page


def table_of(rows: Sequence[Mapping[str, Any]]) -> Html:
    """A table of records, a row each; with many more fields than records, a column each."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[name.replace("_", " ") for name in names]]
    lines += [[format_number(row.get(name, "-")) for name in names] for row in rows]
    if len(names) > max(MAX_FIELDS_ACROSS, len(rows)):
        lines = [list(line) for line in zip(*lines, strict=True)]
    return table(lines[0], lines[1:])


def without_absent(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records without fields that are None in all of them: there they do not apply."""
    present = {name for record in records for name, value in record.items() if value is not None}
    return [{name: value for name, value in record.items() if name in present} for record in records]


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The record's numbers and texts as shown; nested mappings with dotted names; short lists in one cell."""
    shown: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            shown |= scalars(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            shown[f"{prefix}{name}"] = format_number(value)
        elif len(json.dumps(value)) <= 60:
            shown[f"{prefix}{name}"] = ", ".join(format_number(item) for item in value)
    return shown


def format_number(value: object) -> str:
    """Whole numbers in full, others with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_seconds(seconds: float) -> str:
    """``3.2 s``, ``4 min 05 s`` or ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(n_bytes: float) -> str:
    """``812 B``, ``3.4 MB``; decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def stored_pictures(files: RunFiles, stage: str, captions: Mapping[str, str], *, with_fold: bool = True) -> list[Html]:
    """The pictures that a stage left, of the first fold of each site; ``captions``: by the file's name."""
    return [
        picture((folder.path / name).read_bytes(), f"Site {folder.site}{fold}: {caption}")
        for folder in files.first_of_each_site(stage)
        for fold in [f", fold {folder.fold}" if with_fold else ""]
        for name, caption in captions.items()
        if (folder.path / name).is_file()
    ]
