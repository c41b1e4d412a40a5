"""What a package may say of a generator that its receiver does not have: bounded names and numbers, nothing else.

The rule needs no code of that generator. A value is null, true or false, a number, a short name, or a short list of
these; nothing is nested, so that there is no room for a sentence, a path or an image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_KEYS = 64
MAX_LIST_LENGTH = 32
MAX_NUMBER = 1e12
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")  # of a generator, of a key
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}")  # as a value


def faults_of_bounded(settings: Mapping[str, Any], where: str) -> Iterator[tuple[str, object, str]]:
    """Each key, its value and what it must be, of those that are not bounded names and numbers."""
    if len(settings) > MAX_KEYS:
        yield where, f"{len(settings)} keys", f"at most {MAX_KEYS}"
        return
    for key, value in settings.items():
        if not NAME.fullmatch(key):
            yield where, key, "a key of at most 32 lower-case letters, digits and _"
        elif isinstance(value, list | tuple) and len(value) > MAX_LIST_LENGTH:
            yield f"{where}.{key}", f"{len(value)} values", f"at most {MAX_LIST_LENGTH}"
        else:
            values = value if isinstance(value, list | tuple) else [value]
            wrong = [one for one in values if not _is_bounded(one)]
            yield from ((f"{where}.{key}", one, "null, true, false, a number or a short name") for one in wrong[:1])


def _is_bounded(value: Any) -> bool:
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or (
        isinstance(value, bool | int | float) and math.isfinite(value) and abs(value) <= MAX_NUMBER
    )
