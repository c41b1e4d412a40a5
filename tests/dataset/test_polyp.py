"""The polyp converter on miniature trees of both downloads: JPEG masks with grey edges, TIFF frames, sequences."""

import csv
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from support.paths import SHARED_DATA
from support.prepared import source_config

from dataset.check import check_cases
from dataset.importers.polyp import DUPLICATES, LAST_FRAMES, assign_sequences
from dataset.prepare import main
from dataset.source import load_cases

REAL = SHARED_DATA / "polyp_hyperkvasir"
SIZE = (40, 48)
NAMES = [f"cju{number}abc" for number in range(6)]
LAST = (2, 4, 7, 8, 10)


def pixels_and_mask(number):
    """A real endoscopy image, shrunk, with its mask (0/255); noise where the shared data are missing."""
    files = sorted((REAL / "images").glob("*.png"))
    if not files:
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        mask = np.zeros(SIZE, np.uint8)
    else:
        pixels = np.asarray(PIL.Image.open(files[number]).convert("RGB").resize(SIZE[::-1]))
        mask = np.zeros(SIZE, np.uint8)
    mask[10:25, 12 : 30 + number] = 255
    return pixels, mask


def write_hyperkvasir(folder, name, number):
    image, mask = pixels_and_mask(number)
    for part, content in (("images", image), ("masks", np.repeat(mask[..., None], 3, axis=-1))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(content).save(folder / part / f"{name}.jpg", quality=60)


def write_frame(folder, number, ending=".tif"):
    image, mask = pixels_and_mask(number + 10)
    for part, content in (("Original", image), ("Ground Truth", mask)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        file = folder / part / f"{number}{ending}"
        tifffile.imwrite(file, content) if ending == ".tif" else PIL.Image.fromarray(content).save(file)


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "raw"
    for number, name in enumerate([*NAMES, DUPLICATES[2]]):
        write_hyperkvasir(raw / "hyperkvasir" / "segmented-images", name, number)
    for number in range(1, LAST[-1] + 1):
        write_frame(raw / "CVC-ClinicDB", number)
        write_frame(raw / "CVC-ClinicDB" / "PNG", number, ".png")
    return raw


def prepare(raw, out, *settings, last=LAST):
    table = [f"last_frames={','.join(map(str, last))}"] if last else []
    return main(["polyp", "--raw", str(raw), "--out", str(out), "--workers", "2", *table, *settings])


def table(out):
    with (out / "metadata.csv").open() as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def test_two_sites_of_rgb_images_with_sequences_as_patients(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(raw, out) == 0
    rows = table(out)
    patients = {int(row["frame"]): row["patient"][-2:] for row in rows.values() if row["site"] == "B"}
    assert patients == dict(zip(range(1, 11), ["01", "01", "02", "02", "03", "03", "03", "04", "05", "05"]))
    of_a = [row["patient"] for row in rows.values() if row["site"] == "A"]
    assert len(of_a) == len(set(of_a)) == 6
    config = source_config(out)
    report = check_cases(load_cases(config, Path()), config)
    assert report.channels == ("R", "G", "B") and config.labels == {"polyp": 1}
    frame = np.asarray(PIL.Image.open(out / "images" / "clinicdb_003.png"))
    assert np.array_equal(frame, pixels_and_mask(13)[0])
    said = capsys.readouterr().out
    assert f"left out: 1, a duplicate of another image of HyperKvasir: {DUPLICATES[2]}" in said
    assert "16 images are kept, 1608 are expected" in said
    assert "6 images of site A are kept, 996 are expected" in said


def test_that_images_are_no_patients_is_said(raw, tmp_path, capsys):
    """D14: the original takes each frame of HyperKvasir for a patient without a word."""
    prepare(raw, tmp_path / "out")
    assert "no split by patient can be claimed" in capsys.readouterr().out


def test_grey_edges_of_jpeg_masks_are_cut_at_128(raw, tmp_path):
    stored = np.asarray(PIL.Image.open(raw / "hyperkvasir" / "segmented-images" / "masks" / f"{NAMES[0]}.jpg"))
    assert len(np.unique(stored)) > 4  # else the miniature has no grey edges, and this test tests nothing
    prepare(raw, tmp_path / "out")
    mask = np.asarray(PIL.Image.open(tmp_path / "out" / "masks" / f"hyperkvasir_{NAMES[0]}.png"))
    assert np.array_equal(mask, (stored[..., 0] >= 128).astype(np.uint8))
    assert np.array_equal(mask, pixels_and_mask(0)[1] // 255)
    prepare(raw, tmp_path / "out", "mask_threshold=3")
    wider = np.asarray(PIL.Image.open(tmp_path / "out" / "masks" / f"hyperkvasir_{NAMES[0]}.png"))
    assert wider.sum() > mask.sum()


def test_a_mask_without_a_polyp_is_left_out_and_reported(raw, tmp_path, capsys):
    tifffile.imwrite(raw / "CVC-ClinicDB" / "Ground Truth" / "5.tif", np.full(SIZE, 90, np.uint8))
    assert prepare(raw, tmp_path / "out") == 0
    assert "clinicdb_005.png" not in table(tmp_path / "out")
    assert "left out: 1, no pixel of the mask reaches 128: clinicdb_005" in capsys.readouterr().out


def test_a_table_of_sequences_that_misses_frames_is_refused_with_their_numbers(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / "out", last=(2, 4, 7)) == 2
    assert "ends at frame 7 and misses frames 8 to 10" in capsys.readouterr().err
    for part in ("Original", "Ground Truth"):
        for number in (3, 4, 6):
            (raw / "CVC-ClinicDB" / part / f"{number}.tif").unlink()
    assert prepare(raw, tmp_path / "out") == 2
    assert "frames 3 to 4, 6 of 1 to 10 are not there" in capsys.readouterr().err
    assert prepare(raw, tmp_path / "out", last=None) == 2
    assert "3 to 4, 6, 11 to 612" in capsys.readouterr().err
    (raw / "CVC-ClinicDB" / "Original" / "7.tif").unlink()
    assert prepare(raw, tmp_path / "out") == 2
    assert "frames 7 have an image or a mask, not both" in capsys.readouterr().err


def test_the_papers_table_gives_29_sequences():
    """HyFree-S3, data scripts: in the original's contiguous folds 126, 126, 131, 120 and 109 images."""
    of = assign_sequences(range(1, 613), LAST_FRAMES, Path("frames"))
    n_frames = [list(of.values()).count(sequence) for sequence in range(1, 30)]
    folds = [n_frames[0:6], n_frames[6:12], n_frames[12:18], n_frames[18:24], n_frames[24:29]]
    assert [sum(fold) for fold in folds] == [126, 126, 131, 120, 109]


def test_png_frames_serve_where_there_are_no_tiff_ones(raw, tmp_path):
    prepare(raw, tmp_path / "tiff")
    for part in ("Original", "Ground Truth"):
        shutil.rmtree(raw / "CVC-ClinicDB" / part)
    assert prepare(raw, tmp_path / "png") == 0
    names = [f"{folder}/clinicdb_00{number}.png" for folder in ("images", "masks") for number in (1, 9)]
    assert all((tmp_path / "tiff" / name).read_bytes() == (tmp_path / "png" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("folder", "looked_for"),
    [("hyperkvasir", "'images' and 'masks' with .jpg files"), ("CVC-ClinicDB", "'Original' and 'Ground Truth'")],
)
def test_a_missing_download_is_named_by_what_it_contains(raw, tmp_path, capsys, folder, looked_for):
    shutil.rmtree(raw / folder)
    assert prepare(raw, tmp_path / "out") == 2
    assert f"0 folders contain {looked_for}" in capsys.readouterr().err


def test_labels_of_another_size_are_refused(raw, tmp_path, capsys):
    file = raw / "CVC-ClinicDB" / "Ground Truth" / "1.tif"
    tifffile.imwrite(file, np.full((40, 47), 255, np.uint8))
    assert prepare(raw, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert str(file) in said and "40 x 47" in said and "40 x 48" in said
