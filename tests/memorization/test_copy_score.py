"""The fused rule in use: its index, its duplicates, and the flaws of the original put back one at a time."""

from __future__ import annotations

import numpy as np
from support.image_makers import textures

from memorization.calibration import MemorizationConfig, real_to_real
from memorization.copy_score import FUSED_STATISTICS, FusedIndex, Likeness
from memorization.filter import filter_samples, judged_by_likeness, p_values


def features_of(images: np.ndarray) -> np.ndarray:
    """Coarse pixels as unit vectors: enough of an embedder."""
    coarse = images[:, 0, ::8, ::8].reshape(len(images), -1).astype(np.float32) - 128
    return coarse / np.linalg.norm(coarse, axis=1, keepdims=True)


def honest_of(images: np.ndarray, patients: list[str], indexed: np.ndarray | None = None):
    everything = np.ones(len(images), bool) if indexed is None else indexed
    return real_to_real(images, features_of(images), None, np.array(patients), everything)


def test_duplicates_of_two_patients_are_named_and_do_not_let_copies_pass() -> None:
    images = textures(8, seed=1)
    images[5] = images[2]  # one image under two names
    honest = honest_of(images, [f"p{i}" for i in range(8)])
    assert honest.duplicates == ((2, 5), (5, 2))
    assert honest.values.shape == (6, len(FUSED_STATISTICS)) and honest.images.tolist() == [0, 1, 3, 4, 6, 7]
    copies = FusedIndex(images, features_of(images), None).compare(images[:2], features_of(images[:2]))
    assert (p_values(honest.values, copies.values) == 1 / 7).all()


def test_two_images_of_one_patient_are_no_duplicates() -> None:
    images = textures(6, seed=1)
    images[1] = images[0]
    honest = honest_of(images, ["p0", "p0", "p1", "p2", "p3", "p4"])
    assert not honest.duplicates and len(honest.values) == 6


def test_a_mirrored_copy_is_dropped_though_the_index_holds_no_mirror_image() -> None:
    images = textures(8, seed=3)
    honest = honest_of(images, [f"p{i}" for i in range(8)])
    mirrored = np.ascontiguousarray(images[..., ::-1])
    found = FusedIndex(images, features_of(images), None).compare(mirrored, features_of(mirrored))
    assert (p_values(honest.values, found.values) == 1 / 9).all()


def test_features_of_a_mirrored_copy_are_those_of_the_index_where_it_holds_mirror_images() -> None:
    images = textures(6, seed=3)
    mirrored = np.ascontiguousarray(images[..., ::-1])
    index = FusedIndex(images, features_of(images), features_of(mirrored))
    found = index.compare(mirrored, features_of(mirrored))
    assert found.nearest[:, 0].tolist() == list(range(6)) and (found.values[:, 0] > 8).all()  # a distance of 3e-4


def test_a_sample_whose_p_value_is_the_level_itself_is_dropped() -> None:
    unjudged = filter_samples(np.eye(2), np.eye(2)[:1], 0.0, MemorizationConfig())
    likeness = Likeness(np.array([[50.0]]), np.zeros((1, 1), np.int64))
    judged = judged_by_likeness(unjudged, np.linspace(0, 1, 19)[:, None], likeness, ["any"], 0.05)
    assert judged.p_values.tolist() == [0.05] and judged.kept.tolist() == [False]


def test_validation_images_calibrate_against_the_index_in_use_and_are_not_in_it() -> None:
    """Against half of the index, as the original did, images look less alike than they are in use."""
    images = textures(10, seed=4)
    patients = [f"p{i}" for i in range(10)]
    indexed = np.arange(10) < 8
    honest = honest_of(images, patients, indexed)
    index = FusedIndex(images[:8], features_of(images[:8]), None)
    expected = index.compare(images[8:], features_of(images[8:]))
    np.testing.assert_allclose(honest.values[8:], expected.values, atol=2e-3)
    half = FusedIndex(images[:4], features_of(images[:4]), None).compare(images[8:], features_of(images[8:]))
    assert (half.values[:, 0] < expected.values[:, 0]).all()


def test_the_only_patient_of_an_index_does_not_calibrate() -> None:
    images = textures(4, seed=5)
    honest = honest_of(images, ["p0", "p0", "p1", "p2"], np.array([True, True, False, False]))
    assert len(honest.values) == 2
