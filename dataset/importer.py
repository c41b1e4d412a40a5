"""What an importer is: two functions that let ``python -m dataset.prepare`` convert a data set.

``find`` lists the cases of a raw download without decoding an image, ``convert`` writes one of them. Parallel work,
skipping what is done, the table and the report are the same for all importers (``dataset/preparation.py``). A data set
of the user's own is one file with these two functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RawCase:
    """One case of a raw download.

    ``name`` becomes the stem of its files: it is unique, safe as a file name, and the same for any order of listing.
    ``files`` are all files that the case is made of. ``columns`` is its row in ``metadata.csv`` beside ``image``: it
    always has ``site``, it has ``patient`` where the download tells patients apart, and it may have whatever else
    describes the case without identifying anyone. ``recipe`` is what else ``convert`` needs, as JSON can hold it. A
    case is converted again only where its files, its recipe or the converting code changed.
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
    """What ``find`` saw.

    ``labels`` is the label map (name: id from 1) that experiments need; it is empty without masks. ``channel_names``
    are nnU-Net's, where the download has them (``CT`` chooses the normalisation).
    """

    cases: tuple[RawCase, ...]
    labels: Mapping[str, int]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    channel_names: tuple[str, ...] = ()


class Unusable(ValueError):  # noqa: N818 - it says what a case is; it is no error of the program
    """``convert`` raises it for a case that is to be left out and reported; its text is the reason."""


@dataclass(frozen=True)
class Importer:
    """A dataset or a kind of datasets.

    ``find(raw, options)`` raises ``InputError`` where the layout is not what it must be; ``convert(case, out)`` writes
    ``out/images/<name>.<ending>`` and, with labels, ``out/masks/<name>.<ending>`` atomically and in several threads at
    once, raises ``InputError`` for data that must not be used without a decision, and ``Unusable`` to leave a case out.
    ``options`` is the frozen dataclass that ``find`` takes; its fields are the command's ``key=value`` arguments
    (``option`` gives them a line in the command's help).
    """

    name: str
    summary: str
    options: type
    find: Callable[[Path, Any], Found]
    convert: Callable[[RawCase, Path], None]
