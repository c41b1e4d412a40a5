"""Outer folds by patient: three parts train, one validation, one test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.seeds import derive_seed
from dataset.source import Case

N_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Case ids of one outer fold, each sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class FoldPatients:
    """Numbers of patients of one outer fold."""

    train: int
    val: int
    test: int


def patients_of_folds(n_patients: int) -> tuple[FoldPatients, ...]:
    """How many patients of a site each outer fold trains on, validates on and tests on."""
    sizes = [len(part) for part in np.array_split(np.arange(n_patients), N_FOLDS)]
    pairs = [(sizes[(fold + 1) % N_FOLDS], sizes[fold]) for fold in range(N_FOLDS)]
    return tuple(FoldPatients(n_patients - val - test, val, test) for val, test in pairs)


def assign_folds(cases: Iterable[Case], seed: int) -> tuple[Split, ...]:
    """The five outer folds of one site; the same for any order of ``cases``.

    The patients, sorted and then shuffled with a generator seeded by ``seed`` and the site, are cut into five parts
    whose sizes differ by at most one. Fold i tests on part i and validates on part (i + 1) mod 5.

    Raises:
        InputError: fewer than five patients.
    """
    images_of: dict[str, list[str]] = defaultdict(list)
    sites = set()
    for case in cases:
        images_of[case.patient].append(case.case_id)
        sites.add(case.site)
    site = ", ".join(sorted(sites))
    if len(sites) > 1:
        raise ValueError(f"folds are drawn site by site, not over {site}")
    if problem := too_few_patients(site, len(images_of)):
        raise problem
    patients = np.array(sorted(images_of))
    np.random.default_rng(derive_seed(seed, "folds", site)).shuffle(patients)
    parts = [
        tuple(sorted(case_id for patient in part for case_id in images_of[str(patient)]))
        for part in np.array_split(patients, N_FOLDS)
    ]
    return tuple(_split(parts, fold) for fold in range(N_FOLDS))


def too_few_patients(site: str, n_patients: int) -> InputError | None:
    """What is wrong with a site that cannot give every fold a patient."""
    if n_patients >= N_FOLDS:
        return None
    return InputError(
        f"{n_patients} patients are too few for {N_FOLDS} outer folds by patient",
        where=f"site {site or '(none)'}",
        fix=f"give the site at least {N_FOLDS} patients, leave it out with 'sites', or join it with another",
    )


def _split(parts: list[tuple[str, ...]], fold: int) -> Split:
    val = (fold + 1) % N_FOLDS
    train = sorted(case_id for index, part in enumerate(parts) if index not in (fold, val) for case_id in part)
    return Split(tuple(train), parts[val], parts[fold])
