"""JSON from a stranger: bounded in size, depth and numbers, and only the text that our writer would have written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from common.files import json_text
from sharing.errors import RefusedFileError, shown

MAX_JSON_BYTES = 64 * 2**10  # without a list of files; ours have 3 kB
MAX_DEPTH = 8  # ours have 4
MAX_STRING_CHARS = 200  # the longest of ours is a file's name
MAX_INTEGER_DIGITS = 15  # every such integer is also a float64
TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


def parse_json(data: bytes, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in ``data``, whose text must be that of ``common.files.json_text``: so nothing stands between values.

    Raises:
        RefusedFileError: anything else.
    """
    if len(data) > max_bytes:
        raise RefusedFileError(f"has {len(data)} bytes, more than {max_bytes}")
    try:
        content = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_no_constant,
        )
    except RefusedFileError:
        raise
    except RecursionError as error:
        raise RefusedFileError(TOO_DEEP) from error
    except ValueError as error:
        raise RefusedFileError(f"is not JSON in UTF-8 ({shown(str(error))})") from error
    if not isinstance(content, dict):
        raise RefusedFileError(f"holds a {type(content).__name__}, not an object")
    _check_depth(content, 1)
    for text in strings_of(content):
        if len(text) > MAX_STRING_CHARS:
            raise RefusedFileError(f"holds a string of {len(text)} characters: {shown(text)}")
    if json_text(content).encode() != data:
        raise RefusedFileError("is not written as our writer writes it (spaces, order of keys, escapes)")
    return content


def strings_of(content: Any) -> Iterator[str]:
    """Every key and every text, however deep."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from strings_of(value)
    elif isinstance(content, list):
        for value in content:
            yield from strings_of(value)


def _check_depth(content: Any, depth: int) -> None:
    if not isinstance(content, (dict, list)):
        return
    if depth > MAX_DEPTH:
        raise RefusedFileError(TOO_DEEP)
    for value in content.values() if isinstance(content, dict) else content:
        _check_depth(value, depth + 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise RefusedFileError(f"has the key {shown(key)} twice")
        content[key] = value
    return content


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise RefusedFileError(f"holds the number {shown(text)}, of more than {MAX_INTEGER_DIGITS} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RefusedFileError(f"holds the number {shown(text)}, which is not finite")
    return value


def _no_constant(text: str) -> float:
    raise RefusedFileError(f"holds {text}, which is no number of JSON")
