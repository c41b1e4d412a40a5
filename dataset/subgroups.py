"""Columns of a source's table that divide its patients into subgroups, such as sex, scanner or age band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from dataset.source import SourceConfig, as_folder, case_ids
from dataset.table import read_table

MANY_VALUES = 20  # a column with more values divides nobody into groups: an age in years, a date, an identifier


def read_subgroups(config: SourceConfig, data_dir: Path, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """case -> column -> value; an empty cell is the value ``not known``.

    Raises:
        InputError: a column is not there, or has so many values that its groups are single patients.
    """
    folder = as_folder(config, data_dir)
    path = data_dir / str(folder.root) / folder.table
    table = read_table(path, [folder.image_column, *columns])
    images = [value.strip() for value in table[folder.image_column]]
    ids = case_ids(images)
    values = {column: [value.strip() or "not known" for value in table[column]] for column in columns}
    for column, found in values.items():
        if len(set(found)) > MANY_VALUES:
            raise InputError(
                f"column {column!r} has {len(set(found))} values, of at most {MANY_VALUES} for subgroups",
                where=path,
                fix="add a column with bands, such as age_band, and name it in data.subgroup_columns",
            )
    return {ids[image]: {column: found[row] for column, found in values.items()} for row, image in enumerate(images)}
