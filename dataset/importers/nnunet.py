"""An existing nnU-Net raw dataset (v1 or v2), or a task of the Medical Segmentation Decathlon (MSD).

nnU-Net: ``dataset.json``, ``imagesTr/<case>_0000.<ending>`` one file a channel, ``labelsTr/<case>.<ending>``, and the
same with ``Ts``, often without labels. MSD: ``dataset.json`` with a list ``training`` of image and label, and several
channels in one 4D volume. Neither knows patients or sites: a table, or patterns over the case names, name them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json
from dataset.images import ENDINGS, read_mask, safe_name, stem
from dataset.importer import Found, Importer, LeftOut, RawCase
from dataset.key_values import option
from dataset.raw_files import holds, read_channels, the_folder, write_pair
from dataset.table import read_rows

_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class NnunetOptions:
    """Options of the command."""

    table: str = option("", "a .csv or .tsv with a column case and any of patient, site and others")
    patient_pattern: str = option("", "a regular expression whose first group, in the case name, is the patient")
    site_pattern: str = option("", "the same for the site")
    site: str = option("A", "the site of cases for which nothing else says it")


@dataclass(frozen=True)
class _Listed:
    """One case of the dataset: its files, and whether it came from the training or the test part."""

    name: str
    images: tuple[Path, ...]
    label: Path | None
    part: str


def find(raw: Path, options: NnunetOptions) -> Found:
    """List the cases of both parts; those without a label are left out.

    Raises:
        InputError: no dataset.json, labels by region, files that are listed and not there, or a case in no table row.
    """
    root = the_folder(raw, holds("dataset.json"), "'dataset.json'")
    described = _read_description(root / "dataset.json")
    listed = sorted(_listed_cases(root, described), key=lambda case: case.name)
    if not any(case.label for case in listed):
        raise InputError("no case has a label", where=root, fix="the dataset needs imagesTr and labelsTr")
    labels = _labels(described, root / "dataset.json")
    columns_of = _columns_of((case.name for case in listed if case.label), root, raw, options)
    cases = tuple(_raw_case(case, labels, columns_of[case.name]) for case in listed if case.label)
    left_out = tuple(LeftOut(case.name, "no label (test part)") for case in listed if not case.label)
    return Found(cases, labels, left_out, channel_names=_channel_names(described))


def convert(case: RawCase, out: Path) -> None:
    """Write one file for all channels, and the label ids.

    Raises:
        InputError: unreadable files, channels or labels of another size, or labels that dataset.json does not name.
    """
    *image_files, mask_file = case.files
    image = read_channels(image_files)
    mask = read_mask(mask_file, None, case.recipe["labels"])
    write_pair(case.name, out, image, mask, image_files[0], mask_file)


IMPORTER = Importer(
    name="nnunet",
    summary="an nnU-Net raw dataset or a task of the Medical Segmentation Decathlon (2D or 3D)",
    options=NnunetOptions,
    find=find,
    convert=convert,
)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        described = read_json(path)
    except json.JSONDecodeError as error:
        raise InputError(f"it is not readable JSON ({error})", where=path, fix="copy the file again") from error
    if not isinstance(described, dict) or "labels" not in described:
        raise InputError("it has no 'labels'", where=path, fix="give the dataset.json of nnU-Net or MSD")
    return described


def _labels(described: Mapping[str, Any], path: Path) -> dict[str, int]:
    """name -> id without the background; nnU-Net v1 and MSD write id -> name."""
    labels = described["labels"]
    if any(isinstance(value, (list, tuple)) for value in labels.values()):
        raise InputError(
            "labels by region (lists of ids) cannot be kept apart in one mask",
            where=path,
            fix="name the plain labels in it, each with one id; regions can be formed after prediction",
        )
    if all(str(key).isdecimal() for key in labels):
        labels = {name: int(key) for key, name in labels.items()}
    ids = {str(name): int(value) for name, value in labels.items() if int(value) != 0}
    if not ids or "ignore" in ids or sorted(ids.values()) != list(range(1, len(ids) + 1)):
        raise InputError(
            f"the label ids {ids} are not 1, 2, ...",
            where=path,
            fix="number them 1, 2, ... without gaps, without 'ignore', and relabel the masks",
        )
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _channel_names(described: Mapping[str, Any]) -> tuple[str, ...]:
    names = described.get("channel_names") or described.get("modality") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _listed_cases(root: Path, described: Mapping[str, Any]) -> Iterable[_Listed]:
    if "dataset" in described:  # nnU-Net: cases with paths of their own
        for name, entry in described["dataset"].items():
            images = tuple((root / image).resolve() for image in entry["images"])
            yield _Listed(name, images, (root / entry["label"]).resolve(), "Tr")
        return
    training = described.get("training")
    if isinstance(training, list) and training and (root / training[0]["image"]).is_file():  # MSD: a channel axis
        for entry in training:
            yield _Listed(stem(Path(entry["image"])), (root / entry["image"],), root / entry["label"], "Tr")
        test = [root / (entry if isinstance(entry, str) else entry["image"]) for entry in described.get("test", [])]
        yield from (_Listed(stem(image), (image,), None, "Ts") for image in test)
        return
    for part in ("Tr", "Ts"):  # one file a channel, <case>_<4 digits>.<ending>, in the order of these digits
        channels_of: dict[str, list[Path]] = {}
        for image in _image_files(root / f"images{part}"):
            channels_of.setdefault(_CHANNEL.sub("", stem(image)), []).append(image)
        label_of = {stem(label): label for label in _image_files(root / f"labels{part}")}
        for name, files in channels_of.items():
            yield _Listed(name, tuple(files), label_of.get(name), part)


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("[!.]*") if file.name.lower().endswith(ENDINGS))


def _raw_case(case: _Listed, labels: Mapping[str, int], columns: Mapping[str, str]) -> RawCase:
    assert case.label is not None
    files = (*case.images, case.label)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(f"a file of case {case.name!r} is missing", where=missing[0], fix="unpack the dataset again")
    return RawCase(safe_name(case.name), files, {"part": case.part, **columns}, {"labels": dict(labels)})


def _columns_of(names: Iterable[str], root: Path, raw: Path, options: NnunetOptions) -> dict[str, dict[str, str]]:
    """Columns by case name: the table first, then patterns, then the ``patients.json`` that our own datasets have."""
    table = Path(options.table)
    table = table if table.is_absolute() or table.is_file() else raw / table
    rows = {row["case"]: row for _, row in read_rows(table, ("case",))} if options.table else {}
    beside = root.parent / "patients.json"
    patients = read_json(beside) if beside.is_file() else {}
    columns_of = {}
    for name in names:
        if options.table and name not in rows:
            raise InputError(
                f"there is no row for case {name!r}", where=table, fix="add it; its column case is the case name"
            )
        columns = {"site": options.site, "patient": patients.get(name, "")}
        for column, pattern in (("patient", options.patient_pattern), ("site", options.site_pattern)):
            if pattern:
                columns[column] = _first_group(pattern, name, f"{column}_pattern")
        columns |= rows.get(name, {})
        columns_of[name] = {key: value for key, value in columns.items() if value and key != "case"}
    return columns_of


def _first_group(pattern: str, name: str, option: str) -> str:
    try:
        match = re.search(pattern, name)
        if match is None:
            raise InputError(f"the pattern {pattern!r} is not in {name!r}", where=option, fix="correct the pattern")
        return str(match.group(1))
    except (re.error, IndexError) as error:
        raise InputError(
            f"the pattern {pattern!r}: {error}", where=option, fix="write one group, as (p[0-9]+)"
        ) from error
