"""The curves of a training: one JSON object a line, for each thing that was measured at one length."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.files import write_text

CURVES = "curves.jsonl"


def write_curves(out: Path, rows: Iterable[Mapping[str, float | str]]) -> None:
    """Write the file whole; ``step`` and ``unit`` come first, then the measured values by name.

    The order of the keys does not depend on whether a row went through a checkpoint, whose JSON sorts them.
    """
    ordered = ({key: row[key] for key in ("step", "unit", *sorted(row.keys() - {"step", "unit"}))} for row in rows)
    write_text(out / CURVES, "".join(json.dumps(row) + "\n" for row in ordered))
