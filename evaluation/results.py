"""The tables: one row a case and label (``results.csv``), and their summary by model, tested site and label."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError
from common.files import atomic_path
from evaluation.approaches import APPROACHES, approach_of, is_deployable, model_order
from evaluation.segmentation import METRICS
from evaluation.statistics import MIN_PATIENTS_OF_MEAN, Scores, estimate, interval_of_mean, seed_spread

if TYPE_CHECKING:
    import pandas as pd

KEY_COLUMNS = ("model", "trained_on", "tested_on", "fold", "seed", "patient", "case", "label")
COLUMNS = (*KEY_COLUMNS, "dice", "iou", "hd95", "nsd")
FOREGROUND = "foreground"  # the summary's row over all labels: the plain mean of the labels' means


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
    """Read a ``results.csv``: names stay text (case ``007``, site ``NA``), ``fold`` and ``seed`` int, metrics float.

    Raises:
        InputError: a column is missing, a number is not one, or a case is listed twice.
    """
    import pandas as pd

    fix = "delete it and start the same command again: the evaluate stages write it anew"
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(COLUMNS, str), keep_default_na=False)
        missing = [column for column in COLUMNS if column not in table]
        if missing:
            raise InputError(f"the table has no column {missing[0]!r}", where=path, fix=fix)
        table = table.astype({"fold": int, "seed": int})
        for metric in METRICS:
            table[metric] = table[metric].replace("", "nan").astype(float)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"it is not a readable table ({error})", where=path, fix=fix) from error
    twice = table[table.duplicated(list(KEY_COLUMNS))]
    if len(twice):
        case = ", ".join(f"{name} {twice.iloc[0][name]}" for name in KEY_COLUMNS)
        raise InputError(f"the table lists twice: {case}", where=path, fix=fix)
    return table[list(COLUMNS)]


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Aggregate: one row for each model, tested site, label (and ``foreground`` over the labels) and metric.

    Columns: model, trained_on, tested_on, label, metric; ``mean`` (over each patient's images, then over patients,
    then over labels), ``low`` and ``high`` (95 %, patients as units), ``interval_kind``; ``seed_spread`` (standard
    deviation over seeds of the mean, NaN for one seed); ``n_folds``, ``n_patients``, ``n_cases`` and ``n_undefined``
    (case and label pairs where both masks are empty, left out of the means).
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for (model, trained_on, tested_on), group in results.groupby(["model", "trained_on", "tested_on"], sort=True):
        key = {"model": model, "trained_on": trained_on, "tested_on": tested_on}
        rows.extend(key | row for row in _summaries_of(group))
    columns = ["model", "trained_on", "tested_on", "label", "metric", "mean", "low", "high", "interval_kind"]
    columns += ["seed_spread", "n_folds", "n_patients", "n_cases", "n_undefined"]
    sites = set(results["tested_on"])
    rows.sort(key=lambda row: (model_order(row["model"], row["trained_on"], sites), row["tested_on"]))
    return pd.DataFrame(rows, columns=columns)


def _summaries_of(group: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of one model and tested site; one reshaping for all labels and metrics, as there may be hundreds."""
    wide = group.set_index(["fold", "seed", "patient", "case", "label"])[list(METRICS)].unstack("label").sort_index()
    folds, seeds, patients, cases = (wide.index.get_level_values(i).to_numpy() for i in range(4))
    labels = sorted(group["label"].unique())
    for label, columns in [(FOREGROUND, labels), *((label, [label]) for label in labels)]:
        for metric in METRICS:
            scores = Scores(wide[metric][columns].to_numpy(float), patients=patients, folds=folds, seeds=seeds)
            found = estimate(scores)
            shown = interval_of_mean(found, metric)
            defined = ~np.isnan(scores.values)
            yield {
                "label": str(label),
                "metric": metric,
                "mean": shown.mean,
                "low": shown.low,
                "high": shown.high,
                "interval_kind": shown.kind,
                "seed_spread": seed_spread(scores),
                "n_folds": len(np.unique(folds[defined.any(axis=1)])),
                "n_patients": len(np.unique(patients)),
                "n_cases": len(np.unique(cases)),
                "n_undefined": int(np.count_nonzero(~defined)),
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


def best_cells(summary: pd.DataFrame, metric: str) -> set[tuple[str, str]]:
    """(model, tested site) of each site's best means of ``metric`` among the approaches that do not pool real images.

    ``summary``: rows of one label and metric. Compared as shown, so that equal-looking means are marked together.
    """
    sites = set(summary["tested_on"])
    shown: dict[str, list[tuple[float, str]]] = {}
    for row in summary.to_dict("records"):
        if is_deployable(approach_of(row["model"], row["trained_on"], sites)) and not math.isnan(row["mean"]):
            value = float(format_value(row["mean"], metric))
            shown.setdefault(row["tested_on"], []).append((value, row["model"]))
    choose = max if METRICS[metric].direction == "higher" else min
    return {(model, site) for site, found in shown.items() for value, model in found if value == choose(found)[0]}


def by_approach(summary: pd.DataFrame) -> dict[str, list[str]]:
    """Plain words of each approach -> its models, both in the order of the tables."""
    sites, groups = set(summary["tested_on"]), dict[str, list[str]]()
    for model, trained_on in dict.fromkeys(zip(summary["model"], summary["trained_on"], strict=True)):
        groups.setdefault(APPROACHES[approach_of(model, trained_on, sites)], []).append(model)
    return groups


def format_table(summary: pd.DataFrame, faulty: Collection[str] = ()) -> str:
    """The main table for a terminal: mean Dice (%) over labels, models by approach down, tested sites across.

    After each mean its 95 % interval, or nothing where there are too few patients for one; then ``*`` for the best of
    the column that does not pool real images, ``^`` for the model's own site, and ``!`` for a model of ``faulty``.
    """
    chosen = summary[(summary["metric"] == "dice") & (summary["label"] == FOREGROUND)]
    sites, best = sorted(chosen["tested_on"].unique()), best_cells(chosen, "dice")
    cells = {(row["model"], row["tested_on"]): _terminal_cell(row, best, faulty) for row in chosen.to_dict("records")}
    lines: list[list[str]] = [["Dice %", *(f"on {site}" for site in sites)]]
    for words, models in by_approach(chosen).items():
        lines.append([words])
        lines += [[f"  {model}", *(cells.get((model, site), "-") for site in sites)] for model in models]
    legend = "*: the column's best without pooling real images; ^: the model's own site"
    legend += "; !: its training has a fault (networks.csv)" if faulty else ""
    return "\n".join([*aligned(lines), legend, _about_intervals(chosen)])


def _about_intervals(chosen: pd.DataFrame) -> str:
    n_patients = chosen.groupby("tested_on")["n_patients"].max()
    counts = ", ".join(f"{n} patients of {site}" for site, n in n_patients.items())
    if chosen["low"].isna().all():
        return f"no intervals: {counts}; at least {MIN_PATIENTS_OF_MEAN} at a site are needed (data.fold=all tests all)"
    return f"[95 % interval over patients]: {counts}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines whose columns stand below each other; a row of one cell is a heading."""
    columns = zip(*(row for row in rows if len(row) > 1), strict=True)
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def _terminal_cell(row: Mapping[Any, Any], best: Collection[tuple[str, str]], faulty: Collection[str]) -> str:
    marks = "*" if (row["model"], row["tested_on"]) in best else ""
    marks += "^" if row["trained_on"] == row["tested_on"] else ""
    marks += "!" if row["model"] in faulty else ""
    return " ".join(filter(None, [format_value(row["mean"], "dice"), format_interval(row, "dice"), marks]))
