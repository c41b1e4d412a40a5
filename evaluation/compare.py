"""Set finished experiments side by side, paired by patient.

    python -m evaluation.compare runs/a runs/b
    python -m evaluation.compare runs/a runs/b runs/c --metric hd95 --out comparison.csv

The first run is the reference. Every model that both have is compared on the test images that both have: the difference
with its interval over patients and a verdict, corrected for the number of lines. First stand the settings in which the
runs differ.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import command
from common.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("run", "model", "tested_on", "n_patients", "reference", "mean"),
    *("difference", "low", "high", "p", "verdict"),
)
METRIC_NAMES = ("dice", "iou", "hd95", "nsd")


def compare_runs(runs: Sequence[Path], metric: str = "dice") -> pd.DataFrame:
    """A row for each run but the first, model and tested site, in the tables' order.

    Columns: run, model, tested_on, n_patients, reference, mean, difference, low, high, p, verdict; intervals, p and
    verdicts are corrected for the number of rows.

    Raises:
        InputError: a run without results, or without a test image in common with the first.
    """
    import pandas as pd

    from evaluation.approaches import model_order
    from evaluation.segmentation import METRICS
    from evaluation.statistics import ScoreTable, estimate, judge

    results = [_results_of(run) for run in runs]
    found: list[tuple[dict[str, Any], Any]] = []
    for run, table in zip(runs[1:], results[1:], strict=True):
        pair = ScoreTable.of(_paired(results[0], table, run, runs[0]), metric)
        sites = set(pair.sites)
        trained = dict(zip(table["model"], table["trained_on"], strict=True))
        for model in sorted(trained, key=lambda name: model_order(name, trained[name], sites)):
            for site in pair.sites:
                a, b = (pair.scores.get((f"{side}/{model}", site)) for side in ("reference", "run"))
                if a is not None and b is not None:
                    apart = estimate(b.minus(a))
                    means = {"reference": estimate(a).mean, "mean": estimate(b).mean}
                    found.append(({"run": str(run), "model": model, "tested_on": site, **means}, apart))
    rows = []
    for row, apart in found:
        judged = judge(apart, len(found), direction=METRICS[metric].direction)
        bounds = {"difference": apart.mean, "low": judged.interval.low, "high": judged.interval.high}
        rows.append(row | bounds | {"p": judged.p, "verdict": judged.verdict, "n_patients": apart.n_patients})
    columns = [
        "run",
        "model",
        "tested_on",
        "n_patients",
        "reference",
        "mean",
        "difference",
        "low",
        "high",
        "p",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns)


def _results_of(run: Path) -> pd.DataFrame:
    from evaluation.report.run import RunFiles, find_folds

    results = RunFiles(run, find_folds(run)).results
    if results is None or results.empty:
        raise InputError(
            "it holds no results", where=run, fix="give runs/<exp_name> of an experiment that was evaluated"
        )
    return results


def _paired(reference: pd.DataFrame, other: pd.DataFrame, run: Path, reference_run: Path) -> pd.DataFrame:
    """The rows of the test images that both have, each model's name behind its side's.

    Patients are the reference's: a run on fewer cases numbers them otherwise.
    """
    import pandas as pd

    keys = ["tested_on", "fold", "case"]
    patients = reference.drop_duplicates(keys).set_index(keys)["patient"]
    shared = pd.MultiIndex.from_frame(other[keys]).isin(patients.index)
    if not shared.any():
        fix = "compare runs over the same data, sites and folds (data.fold)"
        raise InputError(f"no test image is also one of {reference_run}", where=run, fix=fix)
    kept = other[shared]
    kept = kept.assign(patient=patients.loc[pd.MultiIndex.from_frame(kept[keys])].to_numpy())
    return pd.concat(
        [reference.assign(model="reference/" + reference["model"]), kept.assign(model="run/" + kept["model"])]
    )


def differing_settings(runs: Sequence[Path]) -> list[tuple[str, ...]]:
    """(stage, setting, its value in each run) of every setting of a stage that is not the same in all.

    A stage's settings are told once for all its sites and folds; a stage that a run lacks has ``-``.
    """
    found: dict[tuple[str, str], list[set[str]]] = defaultdict(lambda: [set() for _ in runs])
    for index, run in enumerate(runs):
        for stage, settings in _settings_of(run):
            for name, value in _flattened(settings):
                found[stage, name][index].add(str(value))
    rows = []
    for (stage, name), values in sorted(found.items()):
        shown = [", ".join(sorted(of_run)) or "-" for of_run in values]
        if len(set(shown)) > 1:
            rows.append((stage, name, *shown))
    return rows


def _settings_of(run: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from evaluation.report.run import RunFiles, find_folds, stage_manifests

    for manifest in stage_manifests(RunFiles(run, find_folds(run))):
        if manifest["stage"] != "evaluate":
            yield str(manifest["stage"]), manifest.get("settings") or {}


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def format_comparison(runs: Sequence[Path], compared: pd.DataFrame, metric: str) -> str:
    """Both tables for a terminal."""
    from evaluation.results import aligned, format_value

    lines = ["Settings that differ:"]
    settings = differing_settings(runs)
    lines += (
        [f"  {line}" for line in aligned([("stage", "setting", *map(str, runs)), *settings])]
        if settings
        else ["  none"]
    )
    rows: list[tuple[str, ...]] = [
        ("model", "on", "patients", str(runs[0]), "run", "difference", "corrected 95 % interval", "p", "verdict")
    ]
    for run, of_run in compared.groupby("run", sort=False):
        rows.append((str(run),))
        for row in of_run.to_dict("records"):
            low, high, apart = (format_value(row[name], metric, signed=True) for name in ("low", "high", "difference"))
            shown = "-" if math.isnan(row["low"]) else f"[{low}, {high}]"
            p = "-" if math.isnan(row["p"]) else f"{row['p']:.2g}"
            values = (format_value(row["reference"], metric), format_value(row["mean"], metric), apart, shown, p)
            rows.append((f"  {row['model']}", row["tested_on"], str(row["n_patients"]), *values, row["verdict"]))
    return "\n".join([*lines, "", f"{metric}, paired by patient:", *aligned(rows)])


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="runs/<exp_name>, the reference first")
    parser.add_argument("--metric", choices=METRIC_NAMES, default="dice", help="what is compared (default: dice)")
    parser.add_argument("--out", type=Path, help="a CSV file that receives the rows")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    from evaluation.results import write_table

    if len(chosen.runs) < 2:
        raise InputError("there is nothing to compare with", where=chosen.runs[0], fix="give two runs or more")
    compared = compare_runs(chosen.runs, chosen.metric)
    sys.stdout.write(format_comparison(chosen.runs, compared, chosen.metric) + "\n")
    if chosen.out:
        write_table(chosen.out, compared)


if __name__ == "__main__":
    sys.exit(main())
