"""Tables of a source or of a download: .csv or .tsv in UTF-8, every cell as text, so that identifiers keep zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    import pandas


def read_table(path: Path, columns: Sequence[str] = (), *, as_text: bool = True) -> pandas.DataFrame:
    """Read a table that has at least one row.

    Args:
        columns: they must be there.
        as_text: otherwise numbers and missing values get the types that pandas infers.

    Raises:
        InputError: no such file, not readable, no rows, or one of ``columns`` is missing.
    """
    import pandas

    if not path.is_file():
        raise InputError("there is no such table", where=path, fix="correct its name, or unpack the whole download")
    typing: dict[str, Any] = {"dtype": str, "keep_default_na": False} if as_text else {}
    try:
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        table = pandas.read_csv(path, sep=separator, encoding="utf-8-sig", **typing)
    except (pandas.errors.EmptyDataError, pandas.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(
            f"the table cannot be read ({error})", where=path, fix="save it as a .csv or .tsv file in UTF-8"
        ) from error
    if table.empty:
        raise InputError("the table has no rows", where=path, fix="list one image a row")
    for column in columns:
        if column not in table.columns:
            raise InputError(
                f"there is no column {column!r}; the columns are {list(table.columns)}",
                where=path,
                fix="correct the table, or the setting that names the column",
            )
    return table.fillna("") if as_text else table


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table as text, each with the file and line that a message names.

    Raises:
        InputError: see ``read_table``.
    """
    table = read_table(path, columns)
    for index, values in enumerate(table.itertuples(index=False, name=None)):
        yield f"{path}, line {index + 2}", dict(zip(table.columns, values, strict=True))
