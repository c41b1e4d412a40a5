"""The planted-copy audit: its figures in closed form, its split, and what it says to input it cannot use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta
from support.image_makers import PixelScorer, noise

from common.errors import InputError
from memorization.audit import main, read_site_images
from memorization.planted.copies import KINDS, plant
from memorization.planted.planted_audit import audit_scorers, recall_of


def test_what_a_filter_cannot_see_is_reported_as_missed_and_what_it_sees_as_found() -> None:
    kinds = [kind for kind in KINDS if kind.name in ("identity", "negative")]
    (audit,) = audit_scorers(noise(60), [f"p{i}" for i in range(60)], [PixelScorer()], 0.05, 8, 1, kinds)
    found = {condition.kind: recall for condition, recall in audit.recall.items()}
    assert found["identity"].value == 1 and found["negative"].value < 0.5
    assert audit.by_kind(0.01)["identity"] == 1
    assert audit.false_drops.n == 24 and audit.false_drops.value < 0.3
    assert 0 <= audit.consistency <= 1


def test_patients_are_never_split() -> None:
    """Every image is there twice, under one patient: no honest image may have its twin in the index."""
    images = np.repeat(noise(20), 2, axis=0)
    (audit,) = audit_scorers(images, [f"p{i // 2}" for i in range(40)], [PixelScorer()], 0.05, 4, 1, KINDS[:1])
    assert audit.false_drops.value < 0.5


def test_the_interval_is_clopper_and_pearsons() -> None:
    recall = recall_of(np.arange(20) < 17)
    assert recall.value == 0.85
    assert recall.interval == pytest.approx((beta.ppf(0.025, 17, 4), beta.ppf(0.975, 18, 3)), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_keeps_size_and_type_and_changes_what_it_says(kind, dtype) -> None:
    rng = np.random.default_rng(2)
    images = rng.integers(0, np.iinfo(dtype).max, (2, 3, 20, 28), dtype=dtype)
    for strength in kind.strengths:
        planted = plant(kind, strength, images, images[::-1], seed=4)
        assert planted.shape == images.shape and planted.dtype == dtype
        assert np.array_equal(planted, images) == (kind.name == "identity")
        assert np.array_equal(planted, plant(kind, strength, images, images[::-1], seed=4))


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({}, (), "no image"),
        ({"a.png": b"not a picture"}, (), "a.png"),
        ({f"{i}.png": None for i in range(8)}, ("--patient", "case(.+)"), "no patient"),
        ({f"{i}.png": None for i in range(3)}, (), "3 patients"),
    ],
)
def test_input_that_cannot_be_audited_is_refused_by_name(tmp_path: Path, capsys, files, options, said) -> None:
    for name, content in files.items():
        if content is None:
            Image.fromarray(noise(1)[0, 0]).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
    assert main(["--site-images", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 2
    message = capsys.readouterr().err
    assert said in message and "way out" in message


def test_a_folder_of_files_is_read_with_the_patients_in_their_names(tmp_path: Path) -> None:
    for name in ("anna_1", "anna_2", "bert_1"):
        Image.fromarray(noise(1)[0, 0]).save(tmp_path / f"{name}.png")
    images, patients = read_site_images(tmp_path, "(.+)_[0-9]+", 12)
    assert images.shape == (3, 1, 12, 12) and patients == ["anna", "anna", "bert"]
    table = tmp_path / "patients.csv"
    table.write_text("file,patient,age\nanna_1.png,p1,4\nanna_2.png,p2,5\n")
    with pytest.raises(InputError, match=r"bert_1\.png"):
        read_site_images(tmp_path, "", 12, table)
    table.write_text(table.read_text() + "bert_1.png,p2,6\n")
    assert read_site_images(tmp_path, "", 12, table)[1] == ["p1", "p2", "p2"]
