"""The gauge of a site: held-out patients only, no test patients, scores that know a copy from an honest image."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from support.image_makers import PixelEmbedder

from common.image_set import ImageEntry, ImageSet
from features.fidelity_monitor import FidelityMonitor


def images_of(n_patients: int, split: str, seed: int, per_patient: int = 3) -> ImageSet:
    rng = np.random.default_rng(seed)
    of_patient = rng.normal(128, 30, (n_patients, 1, 1, 8, 8))
    images = np.clip(of_patient + rng.normal(0, 12, (n_patients, per_patient, 1, 8, 8)), 0, 255)
    entries = [
        ImageEntry(f"{split}{i}_{j}", patient=f"{split}{i}", split=split)
        for i in range(n_patients)
        for j in range(per_patient)
    ]
    return ImageSet(images.reshape(-1, 1, 8, 8).astype(np.uint8), tuple(entries))


def gauge_of(training: ImageSet, heldout: ImageSet, **options: object) -> tuple[FidelityMonitor, PixelEmbedder]:
    gauge, embedder = FidelityMonitor(training, heldout, 1, **options), PixelEmbedder()
    gauge._embedder = embedder
    return gauge, embedder


TRAINING, HELDOUT = images_of(30, "train", 0), images_of(12, "val", 1)


def test_copies_are_near_unseen_patients_are_at_1_and_noise_is_far() -> None:
    gauge, _ = gauge_of(TRAINING, HELDOUT)
    copies = np.clip(
        TRAINING.images.astype(int) + np.random.default_rng(0).integers(-2, 3, TRAINING.images.shape), 0, 255
    )
    unseen = gauge.measure(images_of(60, "new", 2, per_patient=1).images, 999)
    copied = gauge.measure(copies.astype(np.uint8), 999)
    assert unseen["nearest_train"] == pytest.approx(1, abs=0.15) and copied["nearest_train"] < 0.3
    assert unseen["copied_train"] < 0.2 and copied["copied_train"] == 1
    assert copied["frechet_train"] < unseen["frechet_train"]  # what the paper's choice rewards
    assert gauge.measure(HELDOUT.images, 999)["nearest_train"] == pytest.approx(1)
    assert abs(unseen["kernel_heldout"]) < 3 * unseen["kernel_heldout_error"]
    assert unseen["diversity"] == pytest.approx(1, abs=0.1)
    one = np.repeat(HELDOUT.images[:1], 20, axis=0)
    assert gauge.measure(one, 999)["diversity"] < 0.01


def test_real_images_are_embedded_once_and_within_the_limit() -> None:
    gauge, embedder = gauge_of(TRAINING, HELDOUT)
    samples = images_of(5, "new", 2).images
    assert gauge.n_references == 126 and gauge.measure(samples, 126) == gauge.measure(samples, 126)
    assert len(embedder.shown) == 126 + 2 * 15
    gauge, embedder = gauge_of(TRAINING, HELDOUT, mirrored=True)
    gauge.measure(samples, 60)
    assert gauge.n_references == 216 and len(embedder.shown) <= 60 + 15


def test_mirrored_copies_are_copies_where_the_generator_saw_mirrored_images() -> None:
    flipped = np.ascontiguousarray(TRAINING.images[..., ::-1])
    plain, mirrored = (gauge_of(TRAINING, HELDOUT, mirrored=sees)[0].measure(flipped, 999) for sees in (False, True))
    assert mirrored["nearest_train"] < 0.01 < 0.5 < plain["nearest_train"]


@pytest.mark.parametrize("heldout", [TRAINING.subset([]), HELDOUT.subset([0, 1, 2]), TRAINING.subset(range(9))])
def test_without_held_out_patients_it_says_so_and_has_scores_of_training_images_alone(
    heldout: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody, one patient, and images of patients the generator trains on."""
    with caplog.at_level(logging.WARNING):
        gauge, _ = gauge_of(TRAINING, heldout)
    scores = gauge.measure(images_of(20, "new", 2).images, 999)
    assert "no held-out patients" in caplog.text
    assert set(scores) == {"frechet_train", "kernel_train", "nearest_train", "copied_train", "diversity"}
    assert scores["nearest_train"] == pytest.approx(1, abs=0.15)
