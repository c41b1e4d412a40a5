"""Which cases train and which are held out, by fold: nnU-Net's own split where it is stored, or the one it would make.

nnU-Net's ``splits_final.json`` is read and never written: a later nnU-Net training would silently use it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError
from common.files import read_json

if TYPE_CHECKING:
    from nnunetv2_mod.nnunet_folder import NnunetDataset

log = logging.getLogger(__name__)

ALL = "all"
N_FOLDS, SEED = 5, 12345  # nnU-Net's
N_WATCHED = 8  # training cases that a training on all validates on
RESTORE = "restore nnU-Net's file, or delete it"
SPLITS, PATIENTS = "splits_final.json", "patients.json"


@dataclass(frozen=True)
class CaseSplit:
    """Names of cases, sorted; ``validate`` are held out, but of fold ``all``, where they are training cases."""

    train: tuple[str, ...]
    validate: tuple[str, ...]


def split_cases(dataset: NnunetDataset, names: Sequence[str], fold: int | str) -> CaseSplit:
    """Split the preprocessed cases ``names`` for ``fold``.

    Args:
        fold: 0 to 4 (to what nnU-Net's file holds, where there is one), or ``all``.

    Raises:
        InputError: no such fold, too few cases or patients, or a split that does not fit the cases.
    """
    names = sorted(names)
    if fold == ALL:
        chosen = np.unique(np.linspace(0, len(names) - 1, N_WATCHED).round().astype(int))
        return CaseSplit(tuple(names), tuple(names[i] for i in chosen))
    stored = dataset.preprocessed / SPLITS
    patients = _patients(dataset, names)
    if stored.is_file():
        return _stored_split(stored, names, patients, _number(fold, len(_read_splits(stored)), stored))
    return _own_split(names, patients, _number(fold, N_FOLDS, dataset.preprocessed), dataset.preprocessed)


def _number(fold: int | str, n_folds: int, where: Path) -> int:
    if not str(fold).isdecimal() or int(fold) >= n_folds:
        fix = f"use 0 to {n_folds - 1}, or {ALL}" if n_folds > 1 else f"use 0, or {ALL}"
        raise InputError(f"there is no fold {fold!r}", where=where, fix=fix)
    return int(fold)


def _read_splits(path: Path) -> list[Mapping[str, Any]]:
    try:
        splits = read_json(path)
    except ValueError as error:
        raise InputError(f"not readable JSON ({error})", where=path, fix=RESTORE) from error
    if not (isinstance(splits, list) and splits and all(map(_is_split, splits))):
        raise InputError("not a list of {train: [...], val: [...]}", where=path, fix=RESTORE)
    return splits


def _is_split(split: Any) -> bool:
    parts = [split.get(part) for part in ("train", "val")] if isinstance(split, dict) else [None]
    return all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in parts)


def _stored_split(path: Path, names: Sequence[str], patients: Mapping[str, str], fold: int) -> CaseSplit:
    split = _read_splits(path)[fold]
    train, validate = tuple(sorted(set(split["train"]))), tuple(sorted(set(split["val"])))
    unknown = sorted((set(train) | set(validate)) - set(names))
    if unknown:
        problem = f"fold {fold} names {len(unknown)} cases that are not preprocessed: {', '.join(unknown[:5])}"
        raise InputError(problem, where=path, fix="preprocess them, or let nnU-Net make the splits again")
    both = sorted(set(train) & set(validate))
    if both or not train or not validate:
        problem = f"{both[0]} is in both parts" if both else f"{len(train)} cases to train and {len(validate)} held out"
        raise InputError(f"fold {fold}: {problem}", where=path, fix=f"correct the fold, or use fold {ALL}")
    shared = {patients[name] for name in train} & {patients[name] for name in validate}
    if shared:
        log.warning("%s, fold %d: patient %s is in both parts (of %s)", path, fold, min(shared), PATIENTS)
    return CaseSplit(train, validate)


def _own_split(names: Sequence[str], patients: Mapping[str, str], fold: int, where: Path) -> CaseSplit:
    """nnU-Net's five folds over sorted names; cases of one patient stay together where patients are known."""
    from sklearn.model_selection import KFold

    groups = sorted({patients[name] for name in names})
    if len(groups) < N_FOLDS:
        problem = f"{len(names)} cases of {len(groups)} patients cannot be split into {N_FOLDS} folds"
        raise InputError(problem, where=where, fix=f"use fold {ALL}, or write {SPLITS} with a split of your own")
    folds = KFold(n_splits=N_FOLDS, shuffle=True, random_state=SEED).split(groups)
    held_out = {groups[i] for i in list(folds)[fold][1]}
    train = tuple(name for name in names if patients[name] not in held_out)
    return CaseSplit(train, tuple(name for name in names if patients[name] in held_out))


def _patients(dataset: NnunetDataset, names: Sequence[str]) -> dict[str, str]:
    """case: patient; a case that no ``patients.json`` names is a patient of its own, by its name."""
    folders = [dataset.preprocessed]
    if dataset.raw is not None:
        folders += [dataset.raw, dataset.raw.parent]  # ours stands beside the raw dataset
    path = next((folder / PATIENTS for folder in folders if (folder / PATIENTS).is_file()), None)
    known = {} if path is None else read_json(path)
    if not isinstance(known, dict):
        raise InputError(
            "the file is not a {case: patient}", where=str(path), fix="write one patient a case, or delete the file"
        )
    if path is not None and (unnamed := [name for name in names if name not in known]):
        log.warning("%s names no patient of %d cases (%s, ...)", path, len(unnamed), unnamed[0])
    return {name: str(known.get(name, name)) for name in names}
