"""What a dataset of the outside world must say of itself, so that ``python -m dataset.prepare`` can convert it.

An importer is two functions: ``find`` lists the cases of a raw download without decoding an image, ``convert`` writes
one of them. Running them in parallel, skipping what is done, the table and the report are the same for all
(``dataset/prepare.py``); a dataset of the user's own is one more file with these two functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RawCase:
    """One case of a raw download.

    ``name`` becomes the stem of its files: unique, safe as a file name, the same for any listing order. ``files`` are
    all files it is made of: their contents decide whether it must be converted again. ``columns`` is its row in
    ``metadata.csv`` beside ``image``: always ``patient`` (where the download tells them apart) and ``site``, and
    whatever else describes it without identifying anyone. ``recipe`` is what ``convert`` needs to know besides,
    JSON-able; a case whose files, recipe and converting code are unchanged is not converted again.
    """

    name: str
    files: tuple[Path, ...]
    columns: Mapping[str, str]
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """Something of the download that does not become a case, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What ``find`` saw. ``labels`` is the label map (name: id from 1) that experiments need; empty without masks.

    ``channel_names``: nnU-Net's, where the download says them (``CT`` chooses the normalisation).
    """

    cases: tuple[RawCase, ...]
    labels: Mapping[str, int]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    channel_names: tuple[str, ...] = ()


class Unusable(ValueError):  # noqa: N818 - said of a case, not an error of ours
    """Raised by ``convert`` for a case to be left out and reported; its text is the reason."""


@dataclass(frozen=True)
class Importer:
    """A dataset or a kind of datasets.

    ``find(raw, options)`` raises ``InputError`` where the layout is not what it must be; ``convert(case, out)`` writes
    ``out/images/<name>.<ending>`` and, with labels, ``out/masks/<name>.<ending>`` atomically and in several threads at
    once, raises ``InputError`` for data that must not be used without a decision, and ``Unusable`` to leave a case out.
    ``options`` is the frozen dataclass that ``find`` takes; its fields are the command's ``key=value`` arguments, a
    field's metadata ``help`` is its line in the command's help.
    """

    name: str
    summary: str
    options: type
    find: Callable[[Path, Any], Found]
    convert: Callable[[RawCase, Path], None]
