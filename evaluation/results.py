"""The tables: one row a case and label (``results.csv``), and their summary by model, tested site and label."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.files import atomic_path
from evaluation.segmentation import METRICS
from evaluation.statistics import fold_means, interval_of

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = ("model", "trained_on", "tested_on", "case", "label")
KEY_COLUMNS = ("model", "trained_on", "tested_on", "fold", "case", "label")
COLUMNS = (*KEY_COLUMNS, "dice", "iou", "hd95", "nsd")
FOREGROUND = "foreground"  # the summary's row over all labels: the plain mean of the labels' means
FAMILIES = ("real", "syn", "syn-real", "fedavg", "fedprox", "fedbn", "dsl")
UNION_FAMILY = re.compile(r"syn.+-real")  # fine-tuned from the synthetic images of some of the sites


def write_results(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` (mappings with ``COLUMNS``; NaN: undefined) sorted by their keys: their order means nothing."""
    import pandas as pd

    table = pd.DataFrame(list(rows), columns=list(COLUMNS)).sort_values(list(KEY_COLUMNS), kind="stable")
    write_table(path, table)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically; numbers in full, NaN as an empty field."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_results(path: Path) -> pd.DataFrame:
    """Read a ``results.csv``: names stay text (case ``007``, site ``NA``), ``fold`` is int, metrics float.

    Raises:
        InputError: a column is missing, a number is not one, or a case is listed twice.
    """
    import pandas as pd

    fix = "delete it and run the evaluate stage again"
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(COLUMNS, str), keep_default_na=False)
        missing = [column for column in COLUMNS if column not in table]
        if missing:
            raise InputError(f"has no column {missing[0]!r}", where=path, fix=fix)
        table = table.astype({"fold": int})
        for metric in METRICS:
            table[metric] = table[metric].replace("", "nan").astype(float)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"not a readable table ({error})", where=path, fix=fix) from error
    _refuse_twice(table, path)
    return table[list(COLUMNS)]


def _refuse_twice(table: pd.DataFrame, path: Path) -> None:
    twice = table[table.duplicated(list(KEY_COLUMNS))]
    if len(twice):
        case = ", ".join(f"{name} {twice.iloc[0][name]}" for name in KEY_COLUMNS)
        raise InputError(f"lists twice: {case}", where=path, fix="delete it and run the evaluate stage again")


def model_order(model: str, trained_on: str) -> tuple[int, bool, str, str]:
    """Sort key of a model: by ``FAMILIES`` (unions with syn-real, others last), then by site, ``all`` last."""
    family = model.removesuffix(f"-{trained_on}")
    family = "syn-real" if UNION_FAMILY.fullmatch(family) else family
    rank = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return rank, trained_on == "all", trained_on, model


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Aggregate: one row for each model, tested site, label (and ``foreground`` over the labels) and metric.

    Columns: model, trained_on, tested_on, label, metric; ``mean`` (over cases, then over folds), ``std`` (over folds,
    NaN for one), ``low`` and ``high`` (95 %), ``interval_kind``, ``n_folds``, ``n_cases`` and ``n_undefined`` (case and
    label pairs where both masks are empty, left out of the means).
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for (model, trained_on, tested_on), group in results.groupby(["model", "trained_on", "tested_on"], sort=True):
        parts = [(str(label), part) for label, part in group.groupby("label", sort=True)]
        for label, part in [(FOREGROUND, group), *parts]:
            key = {"model": model, "trained_on": trained_on, "tested_on": tested_on, "label": label}
            rows.extend({**key, **_summary_of(part, metric)} for metric in METRICS)
    columns = ["model", "trained_on", "tested_on", "label", "metric", "mean", "std", "low", "high"]
    columns += ["interval_kind", "n_folds", "n_cases", "n_undefined"]
    rows.sort(key=lambda row: (model_order(row["model"], row["trained_on"]), row["tested_on"]))
    return pd.DataFrame(rows, columns=columns)


def _summary_of(part: pd.DataFrame, metric: str) -> dict[str, Any]:
    interval = interval_of(part, metric)
    folds = fold_means(part, metric).dropna()
    return {
        "metric": metric,
        "mean": interval.mean,
        "std": float(folds.std(ddof=1)) if len(folds) > 1 else math.nan,
        "low": interval.low,
        "high": interval.high,
        "interval_kind": interval.kind,
        "n_folds": len(folds),
        "n_cases": len(part[["fold", "case"]].drop_duplicates()),
        "n_undefined": int(part[metric].isna().sum()),
    }


def format_value(value: float, metric: str, *, signed: bool = False) -> str:
    """A metric for people: fractions in percent with one decimal, distances with three digits; ``-`` for NaN."""
    if math.isnan(value):
        return "-"
    scaled = 100 * value if METRICS[metric].unit == "fraction" else value
    sign = "+" if signed else ""
    return f"{scaled:{sign}.1f}" if abs(scaled) < 1000 else f"{scaled:{sign}.0f}"


def format_interval(row: Mapping[Any, Any], metric: str) -> str:
    """``[low, high]`` of a summary's row, or nothing where it has none."""
    if math.isnan(row["low"]) or math.isnan(row["high"]):
        return ""
    return f"[{format_value(row['low'], metric)}, {format_value(row['high'], metric)}]"


def format_table(summary: pd.DataFrame) -> str:
    """The main table for a terminal: mean Dice (%) over labels, models down, tested sites across.

    After each mean: ``±`` the standard deviation over folds, or, with one fold, the bootstrap interval.
    """
    chosen = summary[(summary["metric"] == "dice") & (summary["label"] == FOREGROUND)]
    sites = sorted(chosen["tested_on"].unique())
    models = list(dict.fromkeys(chosen["model"]))
    cells = {(row["model"], row["tested_on"]): _terminal_cell(row) for row in chosen.to_dict("records")}
    lines = [["Dice %", *(f"on {site}" for site in sites)]]
    lines += [[model, *(cells.get((model, site), "-") for site in sites)] for model in models]
    widths = [max(len(line[column]) for line in lines) for column in range(len(sites) + 1)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _terminal_cell(row: Mapping[Any, Any]) -> str:
    mean = format_value(row["mean"], "dice")
    if math.isnan(row["std"]):
        return f"{mean} {format_interval(row, 'dice')}".rstrip()
    return f"{mean} ±{format_value(row['std'], 'dice')}"
