"""The cervix converter on miniature exports: scanners as sites, missing organs, slices to cut, several MRIs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from support.dicom_files import geometry_of, points_mm, ring, write_series, write_structures

from common.errors import InputError
from dataset.importers.cervix import IMPORTER, CervixOptions
from dataset.preparation import prepare_source

ORGANS = ("Bladder", "Bowel_bag", "RECTUM", "Sigmoid")
INGENIA, ACHIEVA, INGENIA_3T = (
    ("Philips", "Ingenia", "1.5"),
    ("Philips", "Achieva", "1.5"),
    ("Philips", "Ingenia", "3.0"),
)


def export(raw: Path, patient: str, folder: str = "mri", organs=ORGANS, undrawn=(), value: int = 100, **series) -> None:
    place = raw / patient / folder
    pixels = np.full((6, 24, 32), value, np.int16) + np.arange(24, dtype=np.int16)[:, None]
    uids = write_series(place / "T2", pixels, patient=patient, **series)
    write_series(place / "bFFE", pixels + 5, patient=patient, description="bFFE", frame_uid=uids[1])
    geometry = geometry_of(place / "T2")
    contours = {name: [points_mm(geometry, ring(5 + 7 * i, 12, 3, 2.0))] for i, name in enumerate(organs)}
    write_structures(place / "RS", uids, contours | {name: [] for name in undrawn}, patient=patient)


def prepare(tmp_path: Path, **options):
    chosen = CervixOptions(salt_file=str(tmp_path / "salt"), **options)
    report = prepare_source(IMPORTER, tmp_path / "raw", tmp_path / "out", chosen).report
    with (tmp_path / "out" / "metadata.csv").open() as stream:
        return list(csv.DictReader(stream)), report


def array(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_sites_follow_the_scanner(tmp_path):
    for patient, scanner in {"1": INGENIA, "2": ACHIEVA, "3": INGENIA_3T, "4": INGENIA}.items():
        export(tmp_path / "raw", patient, scanner=scanner)
    rows, _ = prepare(tmp_path)
    assert sorted((row["site"], row["scanner"], row["field_strength_t"]) for row in rows) == [
        *[("A", "Ingenia", "1.5")] * 2,
        ("B", "Achieva", "1.5"),
        ("B", "Ingenia", "3"),
    ]


def test_all_spellings_of_the_organs_become_their_labels(tmp_path):
    export(tmp_path / "raw", "1")
    (row,), _ = prepare(tmp_path)
    labels = array(tmp_path / "out/masks" / row["image"])
    assert [labels[2, 12, 5 + 7 * index] for index in range(4)] == [1, 2, 3, 4]


def test_an_organ_that_was_not_drawn_is_empty_and_reported(tmp_path):
    export(tmp_path / "raw", "1", organs=("Bladder", "Rectum"))
    (row,), report = prepare(tmp_path)
    assert set(np.unique(array(tmp_path / "out/masks" / row["image"]))) == {0, 1, 3}
    assert "no bowel; its mask is empty" in report.text() and "no sigmoid" in report.text()


def test_an_organ_that_is_named_but_has_no_contour_is_reported(tmp_path):
    """Planning systems store the names of a template, drawn or not."""
    export(tmp_path / "raw", "1", organs=("Bladder",), undrawn=("Rectum",))
    _, report = prepare(tmp_path)
    assert "no rectum; its mask is empty" in report.text() and "no bladder" not in report.text()


def test_a_structure_set_without_any_of_the_organs_is_refused(tmp_path):
    export(tmp_path / "raw", "1", organs=("Femur", "Spine"))
    with pytest.raises(InputError, match=r"not drawn; there are \['Femur', 'Spine'\]"):
        prepare(tmp_path)


def test_the_last_slices_are_cut_off_image_and_mask(tmp_path):
    """The table goes before the constant."""
    export(tmp_path / "raw", "1")
    export(tmp_path / "raw", "2", value=300)
    (tmp_path / "raw/cut.csv").write_text("patient id,folder path,slices to remove\n1,x,3\n")
    rows, _ = prepare(tmp_path, slices_to_cut=1, table="cut.csv")
    shapes = {int(array(tmp_path / "out/images" / row["image"]).min()): row["image"] for row in rows}
    for value, n_slices in ((100, 3), (300, 5)):
        for kind in ("images", "masks"):
            assert array(tmp_path / "out" / kind / shapes[value]).shape == (n_slices, 24, 32)


def test_a_table_that_names_nobody_here_is_refused(tmp_path):
    export(tmp_path / "raw", "1")
    (tmp_path / "raw/cut.csv").write_text("patient id,folder path,slices to remove\n99,x,3\n")
    with pytest.raises(InputError, match="no series of this patient") as error:
        prepare(tmp_path, table="cut.csv")
    assert "cut.csv, line 2" in str(error.value)


def test_of_several_mris_the_one_of_the_preferred_scanner_is_kept(tmp_path):
    """Ingenia 1.5 T before other 1.5 T before 3 T, the last one wins; the others are reported."""
    for folder, scanner, value in (("x", INGENIA_3T, 300), ("y", INGENIA, 100), ("z", ACHIEVA, 200)):
        export(tmp_path / "raw", "1", folder, value=value, scanner=scanner)
    (row,), report = prepare(tmp_path)
    assert array(tmp_path / "out/images" / row["image"]).min() == 300
    assert "less preferred" in report.text()


def test_other_series_of_the_study_are_not_taken(tmp_path):
    export(tmp_path / "raw", "1")
    rows, report = prepare(tmp_path)
    assert len(rows) == 1 and "nothing was drawn on it" in report.text()
