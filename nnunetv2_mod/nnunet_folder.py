"""A dataset as nnU-Net left it, found by id, name or path: its plans and where its cases lie. Without nnU-Net."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json

PREPROCESSED, RAW = "nnUNet_preprocessed", "nnUNet_raw"  # environment variables
FOLDER = re.compile(r"Dataset(\d{3,})_.+")
DATASET_JSON = "dataset.json"
PREPARE = "run nnUNetv2_plan_and_preprocess for it"


@dataclass(frozen=True)
class NnunetDataset:
    """A preprocessed dataset."""

    name: str  # of its folders, "Dataset001_X"
    preprocessed: Path
    raw: Path | None  # None: ``nnUNet_raw`` is not set, or it is not there
    plans: dict[str, Any]
    dataset_json: dict[str, Any]


def find_dataset(text: str, plans_name: str = "nnUNetPlans") -> NnunetDataset:
    """The dataset called ``text``: an id (1 or 001), a name (Dataset001_X), or the path of a preprocessed dataset.

    Ids and names are looked up in the folder that the environment variable ``nnUNet_preprocessed`` names.

    Raises:
        InputError: no such dataset, or several with that id; no plans of that name, or an unreadable file.
    """
    folder = _folder_of(text)
    raw = Path(os.environ.get(RAW, "")) / folder.name
    raw_dataset = raw if RAW in os.environ and raw.is_dir() else None
    return NnunetDataset(
        name=folder.name,
        preprocessed=folder,
        raw=raw_dataset,
        plans=_read_plans(folder, plans_name),
        dataset_json=_read_dataset_json(folder, raw_dataset),
    )


def _folder_of(text: str) -> Path:
    is_path = not text.isdecimal() and (len(Path(text).parts) != 1 or text in (".", ".."))
    preprocessed = _preprocessed()
    if is_path or (preprocessed is None and not text.isdecimal() and Path(text).is_dir()):
        folder = Path(text).resolve()
        if not folder.is_dir():
            raise InputError(
                "there is no such folder", where=text, fix="give an id, a name, or a preprocessed dataset's path"
            )
        return folder
    if preprocessed is None:
        problem = f"not set, and needed to find dataset {text!r}"
        raise InputError(problem, where=PREPROCESSED, fix=f"export {PREPROCESSED}=<folder>, or give a path")
    names = sorted(path.name for path in preprocessed.iterdir() if path.is_dir())
    id_of = {name: int(matched.group(1)) for name in names if (matched := FOLDER.fullmatch(name))}
    found = [name for name in id_of if name == text or (text.isdecimal() and id_of[name] == int(text))]
    if len(found) == 1:
        return preprocessed / found[0]
    if found:
        problem = f"dataset {text!r} is one of {', '.join(found)}"
        raise InputError(problem, where=preprocessed, fix="give the name of one of them")
    there = ", ".join(id_of) or "none"
    raise InputError(
        f"there is no dataset {text!r}; those there: {there}", where=preprocessed, fix=f"give one, or {PREPARE}"
    )


def _preprocessed() -> Path | None:
    """The folder of all datasets; None where the variable is not set."""
    value = os.environ.get(PREPROCESSED)
    if not value:
        return None
    if not Path(value).is_dir():
        raise InputError(f"there is no such folder: {value!r}", where=PREPROCESSED, fix="name a folder that is there")
    return Path(value)


def _read_plans(folder: Path, plans_name: str) -> dict[str, Any]:
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        others = ", ".join(sorted(one.stem for one in folder.glob("*Plans*.json"))) or "none"
        fix = f"choose plans that are there ({others}), or {PREPARE}"
        raise InputError("there is no such file: this dataset has no such plans", where=path, fix=fix)
    return _read_object(path)


def _read_dataset_json(folder: Path, raw: Path | None) -> dict[str, Any]:
    places = [folder / DATASET_JSON] + ([] if raw is None else [raw / DATASET_JSON])
    for path in places:
        if path.is_file():
            return _read_object(path)
    raise InputError("there is no such file", where=places[0], fix=PREPARE)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise InputError(f"the file is not JSON ({error})", where=path, fix=PREPARE) from error
    if not isinstance(value, dict):
        raise InputError(f"the file holds a {type(value).__name__} in place of an object", where=path, fix=PREPARE)
    return value
