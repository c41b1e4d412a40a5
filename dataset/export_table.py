"""The original's table of datasets and folds (``df_dataset_id.yaml``), for those who have scripts that read it.

    python -m dataset.export_table root=data/qata patient_column=patient site_column=site_2 first_id=700 \\
        descriptor=qata out=df_dataset_id.yaml

The folds are those of an experiment with the same ``seed_base``. Columns and row order follow HyFree-S3's data
scripts, for any sites.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.command import command
from common.errors import InputError
from common.files import write_text
from common.seeds import derive_seed
from dataset.folds import N_FOLDS, Split, assign_folds
from dataset.key_values import add_settings, option, read_settings
from dataset.source import Case, SourceConfig, load_report

COLUMNS = ("dataset_id", "dataset_name", "hosp", "fold", "real", "train", "val", "test")
_NO_CASES = Split((), (), ())


@dataclass(frozen=True)
class TableOptions:
    """Options of the command beside the source's keys."""

    first_id: int = option(700, "id of the first row, at least 100")
    descriptor: str = option("case", "the end of the datasets' names")
    seed_base: int = option(71173, "general.seed_base of the experiment")
    out: str = option("df_dataset_id.yaml", "file to write")
    data_dir: str = option(".", "what root is relative to")
    scaling: tuple[int, ...] = option((), "also write <out>_scaling.yaml: unions of the first 2, 4, ... sites")
    scaling_first_id: int = option(100, "id of the first of its additional rows")
    federated: bool = option(False, "also write <out>_federated.yaml, ids after the table's")


@dataclass(frozen=True)
class _Group:
    """Five rows, one a fold: a site or union, the kind of data, and the folds' cases (none of synthetic kinds)."""

    site: str
    kind: str
    folds: tuple[Split, ...] = (_NO_CASES,) * N_FOLDS


Row = dict[str, Any]


def table_rows(cases: Sequence[Case], options: TableOptions) -> list[Row]:
    """Rows of real, syn and syn-real of each site in the cases' order, and of ``all`` for the first two kinds."""
    folds = site_folds(cases, options.seed_base)
    everything = _joined(folds.values())
    groups = [*(_Group(site, "real", of) for site, of in folds.items()), _Group("all", "real", everything)]
    groups += [_Group(site, "syn") for site in (*folds, "all")]
    groups += [_Group(site, "syn-real") for site in folds]
    return _rows(groups, options.first_id, options.descriptor)


def scaling_rows(cases: Sequence[Case], options: TableOptions) -> list[Row]:
    """The additional rows of the scaling experiment: unions of the first k sites, and fine-tuning from each.

    Raises:
        InputError: k below 2, or not below the number of sites.
    """
    folds = site_folds(cases, options.seed_base)
    wrong = [k for k in options.scaling if not 2 <= k < len(folds)]
    if wrong:
        raise InputError(
            f"a union of {wrong[0]} of {len(folds)} sites",
            where="scaling",
            fix="give numbers from 2 to one less than there are sites; the union of all is 'all'",
        )
    members = {k: tuple(folds)[:k] for k in options.scaling}
    names = {
        k: "".join(sites) if all(len(site) == 1 for site in sites) else "+".join(sites) for k, sites in members.items()
    }
    groups = [_Group(names[k], "real", _joined(folds[site] for site in members[k])) for k in members]
    groups += [_Group(names[k], "syn") for k in members]
    groups += [_Group(site, f"syn{k}-real") for k in members for site in folds]
    return _rows(groups, options.scaling_first_id, options.descriptor)


def federated_rows(cases: Sequence[Case], options: TableOptions) -> list[Row]:
    """The rows of the federated baseline: each site's real folds again, with ids after those of ``table_rows``."""
    folds = site_folds(cases, options.seed_base)
    first_id = options.first_id + len(table_rows(cases, options))
    return _rows([_Group(site, "real", of) for site, of in folds.items()], first_id, options.descriptor)


def site_folds(cases: Iterable[Case], seed_base: int) -> dict[str, tuple[Split, ...]]:
    """The outer folds of each site as an experiment with this ``seed_base`` draws them.

    Raises:
        InputError: a site of fewer than five patients.
    """
    of_site: dict[str, list[Case]] = {}
    for case in cases:
        of_site.setdefault(case.site, []).append(case)
    return {site: assign_folds(of, derive_seed(seed_base, "folds", site)) for site, of in of_site.items()}


@command(partial(add_settings, options=TableOptions, source=SourceConfig))
def main(chosen: argparse.Namespace) -> None:
    """Write the tables."""
    options, config = read_settings(chosen.settings, TableOptions, SourceConfig)
    report = load_report(config, Path(options.data_dir))
    written = _write_tables(report.cases, options)
    sys.stdout.write("".join(f"warning: {warning}\n" for warning in report.warnings))
    sys.stdout.write("".join(f"{path}: {n_rows} rows\n" for path, n_rows in written.items()))


def _write_tables(cases: Sequence[Case], options: TableOptions) -> dict[Path, int]:
    import pandas
    import yaml

    out = Path(options.out)
    tables = {out: table_rows(cases, options)}
    if options.scaling:
        tables[out.with_name(f"{out.stem}_scaling{out.suffix}")] = [*tables[out], *scaling_rows(cases, options)]
    if options.federated:
        tables[out.with_name(f"{out.stem}_federated{out.suffix}")] = federated_rows(cases, options)
    for rows in tables.values():
        _check_ids([row["dataset_id"] for row in rows])
    for path, rows in tables.items():
        columns = pandas.DataFrame(rows, columns=list(COLUMNS)).to_dict()  # column -> row index -> value
        write_text(path, yaml.safe_dump(columns, sort_keys=False))
    return {path: len(rows) for path, rows in tables.items()}


def _check_ids(ids: Sequence[int]) -> None:
    """nnU-Net writes ids with at least three digits, the original without padding: below 100 they differ."""
    if min(ids) < 100:
        raise InputError(f"the dataset id {min(ids)} is too small", where="first_id", fix="use ids of at least 100")
    if len(set(ids)) < len(ids):
        raise InputError(
            f"the {len(ids)} rows share ids", where="first_id, scaling_first_id", fix="move one of them, they overlap"
        )


def _joined(sites: Iterable[tuple[Split, ...]]) -> tuple[Split, ...]:
    """Fold i of a union: the sites' folds i, one after the other."""
    of_sites = list(sites)
    return tuple(
        Split(
            tuple(case for of in of_sites for case in of[fold].train),
            tuple(case for of in of_sites for case in of[fold].val),
            tuple(case for of in of_sites for case in of[fold].test),
        )
        for fold in range(N_FOLDS)
    )


def _rows(groups: Sequence[_Group], first_id: int, descriptor: str) -> list[Row]:
    rows: list[Row] = []
    for group in groups:
        for fold, split in enumerate(group.folds):
            number = first_id + len(rows)
            cases = {"train": list(split.train), "val": list(split.val), "test": list(split.test)}
            head = {"dataset_id": number, "dataset_name": f"Dataset{number}_{descriptor}"}
            rows.append({**head, "hosp": group.site, "fold": fold, "real": group.kind, **cases})
    return rows


if __name__ == "__main__":
    sys.exit(main())
