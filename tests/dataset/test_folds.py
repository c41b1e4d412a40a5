"""Outer folds by patient."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from dataset.folds import assign_folds
from dataset.source import Case

image_counts = st.lists(st.integers(1, 4), min_size=5, max_size=30)


def cases_of(counts, site="A"):
    return [
        Case(f"{site}-p{patient}-{image}", Path("i"), Path("m"), f"p{patient}", site)
        for patient, n_images in enumerate(counts)
        for image in range(n_images)
    ]


@settings(max_examples=60, deadline=None)
@given(image_counts, st.integers(0, 5))
def test_no_patient_is_in_two_parts_and_every_case_in_exactly_one(counts, seed):
    cases = cases_of(counts)
    patient_of = {case.case_id: case.patient for case in cases}
    folds = assign_folds(cases, seed)
    for split in folds:
        assert sorted((*split.train, *split.val, *split.test)) == sorted(patient_of)
        train, val, test = ({patient_of[case] for case in part} for part in (split.train, split.val, split.test))
        assert not (train & val or train & test or val & test)
        assert len(val) - len(counts) // 5 in (0, 1) and len(test) - len(counts) // 5 in (0, 1)
    assert sorted(case for split in folds for case in split.test) == sorted(patient_of)
    assert [folds[(fold + 1) % 5].test for fold in range(5)] == [split.val for split in folds]


@settings(max_examples=40, deadline=None)
@given(image_counts, st.randoms(use_true_random=False))
def test_folds_do_not_depend_on_the_order_of_cases(counts, random):
    """D40: fold membership followed the file system's listing order."""
    cases = cases_of(counts)
    shuffled = random.sample(cases, len(cases))
    assert assign_folds(shuffled, 0) == assign_folds(cases, 0)


def test_seed_and_site_change_the_folds():
    counts = [1] * 20
    tests = [assign_folds(cases_of(counts, site), seed)[0].test for site, seed in (("A", 0), ("A", 1), ("B", 0))]
    patients = [tuple(case.split("-")[1] for case in test) for test in tests]
    assert len(set(patients)) == 3


def test_four_patients_are_refused_by_site_and_count():
    with pytest.raises(InputError, match=r"(?s)site A: 4 patients.*way out"):
        assign_folds(cases_of([3, 3, 3, 3]), 0)
