"""The QaTa-COV19 v2 converter on miniature trees of the download, with crops of real chest X-rays where they are."""

import csv
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from support.paths import SHARED_DATA
from support.prepared import source_config

from dataset.check import check_cases
from dataset.prepare import main
from dataset.raw_files import deal_to_sites
from dataset.source import load_cases

REAL = SHARED_DATA / "cxr_hannover"
SIZE = (32, 28)


def pixels_and_mask(number):
    """A crop of a real X-ray with its lung mask; noise where the shared data are missing."""
    files = sorted((REAL / "images").glob("*.png"))
    if not files:
        pixels = np.random.default_rng(number).integers(0, 255, SIZE, dtype=np.uint8)
        return pixels, np.where(pixels > 127, 255, 0).astype(np.uint8)
    crop = (slice(60, 60 + SIZE[0]), slice(60, 60 + SIZE[1]))
    image = np.asarray(PIL.Image.open(files[number]).convert("L"))[crop]
    return image, np.asarray(PIL.Image.open(REAL / "lung_masks" / files[number].name).convert("L"))[crop]


def write(raw, subset, name, number, *, colours=False):
    image, mask = pixels_and_mask(number)
    for folder, file, content in (("Images", name, image), ("Ground-truths", f"mask_{name}", mask)):
        (raw / subset / folder).mkdir(parents=True, exist_ok=True)
        shown = np.repeat(content[..., None], 3, axis=-1) if colours else content
        PIL.Image.fromarray(shown).save(raw / subset / folder / file)


@pytest.fixture
def raw(tmp_path):
    """Names as in the download; sub-S9 has an image in each subset, covid_*.png has no patient."""
    raw = tmp_path / "download" / "QaTa-COV19" / "QaTa-COV19-v2"
    for number in range(12):
        name = f"sub-S{number + 3:02d}_ses-E{number}_run-1_bp-chest_vp-ap_dx.png"
        write(raw, "Train Set", name, number, colours=number == 5)
    for number in range(12, 16):
        write(raw, "Test Set", f"sub-S{number - 3:02d}_ses-E{number}_run-1_bp-chest_vp-pa_cr.png", number)
    write(raw, "Train Set", "covid_17.png", 16)
    write(raw, "Test Set", "mini_COVID-19 (3).png", 17)
    return raw.parent.parent


def prepare(raw, out, *settings):
    return main(["qata", "--raw", str(raw), "--out", str(out), "--workers", "2", *settings])


def table(out):
    with (out / "metadata.csv").open() as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def inner(raw):
    return raw / "QaTa-COV19" / "QaTa-COV19-v2"


def test_both_subsets_become_one_source_of_patients(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(raw, out) == 0
    rows = table(out)
    assert len(rows) == 16 and {row["patient"] for row in rows.values()} == {str(number) for number in range(3, 15)}
    assert rows["train_sub-S09_ses-E6_run-1_bp-chest_vp-ap_dx.png"]["patient"] == "9"
    assert rows["test_sub-S09_ses-E12_run-1_bp-chest_vp-pa_cr.png"]["patient"] == "9"
    said = capsys.readouterr().out
    assert "left out: 2, the name has no patient" in said and "Train Set/covid_17.png" in said
    assert "16 images are kept, 6307 are expected" in said and "12 patients are kept, 2130 are expected" in said
    config = source_config(out)
    report = check_cases(load_cases(config, Path()), config)
    assert report.channels == ("grey",) and report.dtype == "uint8"
    stored, _ = pixels_and_mask(5)
    written = np.asarray(PIL.Image.open(out / "images" / "train_sub-S08_ses-E5_run-1_bp-chest_vp-ap_dx.png"))
    assert np.array_equal(written, stored)
    mask = np.asarray(PIL.Image.open(out / "masks" / "train_sub-S03_ses-E0_run-1_bp-chest_vp-ap_dx.png"))
    assert np.array_equal(mask, pixels_and_mask(0)[1] // 255)


def test_sites_are_those_of_the_original_for_any_number(raw, tmp_path):
    """D37, D38: the original has constants to edit for 2 or 8 sites."""
    out = tmp_path / "out"
    prepare(raw, out, "n_sites=2,8,3")
    rows = table(out)
    order = list(range(3, 15))  # the original's patient ids are whole numbers, sorted by the dump to YAML
    np.random.default_rng(42).shuffle(order)
    for n_sites in (2, 8, 3):
        expected = {str(patient): "ABCDEFGH"[index % n_sites] for index, patient in enumerate(order)}
        assert {row["patient"]: row[f"site_{n_sites}"] for row in rows.values()} == expected
    assert all(row["site"] == row["site_2"] for row in rows.values())


def test_sites_beyond_the_alphabet_have_names_and_ids_sort_as_numbers():
    sites = deal_to_sites((str(number) for number in range(60)), 30)
    assert len(set(sites.values())) == 30 and {"A", "Z", "S27", "S30"} <= set(sites.values())
    assert deal_to_sites(["10", "9"], 2) == deal_to_sites(["9", "10"], 2)


def test_the_same_image_in_both_subsets_is_kept_once_and_reported(raw, tmp_path, capsys):
    folder = inner(raw)
    name = "sub-S03_ses-E0_run-1_bp-chest_vp-ap_dx.png"
    for part, file in (("Images", name), ("Ground-truths", f"mask_{name}")):
        shutil.copy(folder / "Train Set" / part / file, folder / "Test Set" / part / file)
    write(folder, "Test Set", "sub-S04_ses-E1_run-1_bp-chest_vp-ap_dx.png", 18)  # another image under a name of Train
    assert prepare(raw, tmp_path / "out") == 0
    rows = table(tmp_path / "out")
    assert f"train_{name}" in rows and f"test_{name}" not in rows and len(rows) == 17
    assert f"left out: 1, the same image as Train Set/{name}: Test Set/{name}" in capsys.readouterr().out


def test_a_mask_with_grey_levels_needs_a_decision(raw, tmp_path, capsys):
    file = inner(raw) / "Train Set" / "Ground-truths" / "mask_sub-S03_ses-E0_run-1_bp-chest_vp-ap_dx.png"
    levels = np.full(SIZE, 200, np.uint8)
    levels[0] = 100
    PIL.Image.fromarray(levels).save(file)
    assert prepare(raw, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert str(file) in said and "[100, 200]" in said and "mask_threshold=128" in said
    assert prepare(raw, tmp_path / "out", "mask_threshold=128") == 0
    mask = np.asarray(PIL.Image.open(tmp_path / "out" / "masks" / "train_sub-S03_ses-E0_run-1_bp-chest_vp-ap_dx.png"))
    assert np.array_equal(mask, (levels >= 128).astype(np.uint8))


def test_a_mask_of_another_size_is_refused(raw, tmp_path, capsys):
    file = inner(raw) / "Test Set" / "Ground-truths" / "mask_sub-S09_ses-E12_run-1_bp-chest_vp-pa_cr.png"
    PIL.Image.fromarray(np.zeros((28, 32), np.uint8)).save(file)
    assert prepare(raw, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert str(file) in said and "28 x 32" in said and "32 x 28" in said and "way out" in said


@pytest.mark.parametrize(
    ("missing", "said"),
    [("Test Set", "'Train Set' and 'Test Set'"), ("Train Set/Ground-truths/mask_sub-S03*", "there is no mask")],
)
def test_a_download_in_parts_is_refused(raw, tmp_path, capsys, missing, said):
    for path in inner(raw).glob(missing):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert prepare(raw, tmp_path / "out") == 2
    assert said in capsys.readouterr().err
