"""DICOM: slices in their places, contours on their voxels, Hounsfield units, and nothing that identifies anyone."""

from __future__ import annotations

import dataclasses
import gzip
import math
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from support.dicom_files import (
    IDENTITY,
    geometry_of,
    points_mm,
    ring,
    write_segmentation,
    write_series,
    write_structures,
)
from support.prepared import source_config

from common.errors import InputError
from dataset.check import check_cases
from dataset.dicom.rtstruct import read_structures
from dataset.dicom.series import all_files, group_series, load_salt, pseudonym, read_headers, sort_series
from dataset.importers.dicom import IMPORTER, DicomOptions
from dataset.preparation import prepare_source
from dataset.source import load_cases

SHAPE = (6, 24, 32)  # slices, rows, columns
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)  # a coronal-like plane, turned about the long axis
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def volume(low: int = 0) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 900, SHAPE).astype(np.int16)


@pytest.fixture
def options(tmp_path) -> DicomOptions:
    return DicomOptions(organs={"Bladder": 1, "Rectum": 2}, salt_file=str(tmp_path / "salt"))


def exported(raw: Path, name: str = "p1", organs=("Bladder", "Rectum"), **series) -> None:
    """One patient with a series and circles as structures."""
    folder = raw / "clinic" / name / "series"
    uids = write_series(folder, series.pop("pixels", volume()), **series)
    geometry = geometry_of(folder)
    contours = {
        organ: [points_mm(geometry, ring(8.0 + 14 * index, 12.0, 5.0, z)) for z in (1.0, 2.0)]
        for index, organ in enumerate(organs)
    }
    write_structures(raw / "clinic" / name / "RS.dcm", uids, contours, patient=series.get("patient", "4711"))


def prepared(raw: Path, out: Path, options: DicomOptions):
    prepare_source(IMPORTER, raw, out, options)
    config = source_config(out)
    cases = load_cases(config, out)
    return config, cases


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1.0, 0), SAGITTAL, OBLIQUE])
def test_every_voxel_keeps_its_place_in_space(tmp_path, options, orientation):
    """Shuffled names; the volume is found again at the physical position of each of its slices."""
    pixels = volume()
    exported(tmp_path / "raw", pixels=pixels, orientation=orientation)
    _, (case,) = prepared(tmp_path / "raw", tmp_path / "out", options)
    image = SimpleITK.ReadImage(str(case.image))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), pixels)
    assert image.GetSpacing() == pytest.approx((0.75, 0.5, 4.0))
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    expected = np.array([-10, 20, -30]) + rows * 0.75 * 3 + columns * 0.5 * 7 + np.cross(rows, columns) * 4 * 2
    np.testing.assert_allclose(image.TransformContinuousIndexToPhysicalPoint((3.0, 7.0, 2.0)), expected, atol=1e-4)


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1.0, 0), SAGITTAL, OBLIQUE])
def test_a_circle_has_its_area_in_its_place_whatever_the_orientation(tmp_path, orientation):
    write_series(tmp_path / "s", volume(), orientation=orientation)
    geometry = geometry_of(tmp_path / "s")
    write_structures(tmp_path / "RS", ("1", "2"), {"a": [points_mm(geometry, ring(15.0, 11.0, 8.0, 3.0))]})
    (mask,) = read_structures(tmp_path / "RS", geometry, {1: None}).values()
    assert mask.sum() == mask[3].sum() == pytest.approx(math.pi * 64, rel=0.03)
    assert np.argwhere(mask[3]).mean(axis=0) == pytest.approx([11.0, 15.0], abs=0.05)


def test_a_rectangle_covers_the_voxels_whose_centres_it_holds(tmp_path):
    """From 2.5 to 7.5 and 3.5 to 9.5: five columns, six rows, no half voxel more; a hole is cut out."""
    write_series(tmp_path / "s", volume())
    geometry = geometry_of(tmp_path / "s")

    def box(left: float, right: float, top: float, bottom: float) -> np.ndarray:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return points_mm(geometry, np.array([(x, y, 1.0) for x, y in corners]))

    drawn = {"a": [box(2.5, 7.5, 3.5, 9.5)], "b": [box(2.5, 7.5, 3.5, 9.5), box(3.5, 5.5, 4.5, 6.5)]}
    write_structures(tmp_path / "RS", ("1", "2"), drawn)
    masks = read_structures(tmp_path / "RS", geometry, {1: None, 2: None})
    assert masks[1][1, 4:10, 3:8].all() and masks[1].sum() == 30
    assert masks[2].sum() == 30 - 4 and not masks[2][1, 5:7, 4:6].any()


def test_hounsfield_units_below_zero_survive(tmp_path, options):
    """D6: the original set them to 0."""
    pixels = volume()
    exported(tmp_path / "raw", pixels=pixels, modality="CT", rescale=(2.0, -1024.0))
    config, (case,) = prepared(tmp_path / "raw", tmp_path / "out", options)
    stored = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case.image)))
    np.testing.assert_array_equal(stored, pixels * 2 - 1024)
    assert stored.min() < -1000 and config.channel_names == ("CT",)


def test_overlapping_organs_go_to_the_lower_label(tmp_path, options):
    uids = write_series(tmp_path / "raw/clinic/s", volume())
    geometry = geometry_of(tmp_path / "raw")
    circles = {
        "Rectum": [points_mm(geometry, ring(14, 12, 6, 2))],
        "Bladder": [points_mm(geometry, ring(18, 12, 6, 2))],
    }
    write_structures(tmp_path / "raw/clinic/RS", uids, circles)
    _, (case,) = prepared(tmp_path / "raw", tmp_path / "out", options)
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case.mask)))
    assert labels[2, 12, 16] == 1 and labels[2, 12, 10] == 2


def test_a_segmentation_object_is_read_as_a_structure_set_is(tmp_path, options):
    folder = tmp_path / "raw/clinic/s"
    uids = write_series(folder, volume())
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 5:9, 6:20] = True
    write_segmentation(tmp_path / "raw/clinic/SEG", folder, uids, {"bladder": mask, "Rectum": np.roll(mask, 8, axis=1)})
    _, (case,) = prepared(tmp_path / "raw", tmp_path / "out", options)
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case.mask)))
    np.testing.assert_array_equal(labels == 1, mask)
    np.testing.assert_array_equal(labels == 2, np.roll(mask, 8, axis=1))


def test_the_right_series_of_a_study_is_found(tmp_path, options):
    """Two series in one frame of reference: the structure set says on which one it was drawn."""
    write_series(tmp_path / "raw/clinic/p1/other", volume() + 7, description="DWI", frame_uid="1.2.77")
    exported(tmp_path / "raw", frame_uid="1.2.77")
    _, (case,) = prepared(tmp_path / "raw", tmp_path / "out", options)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case.image))), volume())


def test_the_output_is_a_source_that_passes_the_check(tmp_path, options):
    for number in range(5):
        exported(tmp_path / "raw", f"p{number}", patient=f"47{number}")
    config, cases = prepared(tmp_path / "raw", tmp_path / "out", options)
    report = check_cases(cases, config)
    assert report.sites["clinic"].n_patients == 5 and set(report.label_fractions) == {"Bladder", "Rectum"}


def test_nothing_that_identifies_anyone_is_in_any_byte_of_the_output(tmp_path, options):
    """Neither tags nor the names of folders and files, also not of what is left out."""
    exported(tmp_path / "raw", "Jansen_1234567", patient="1234567")
    orphan = tmp_path / "raw/clinic/Bakker_7654321/RS_7654321.dcm"
    write_structures(orphan, ("9.9.9", "8.8"), {"Bladder": [np.zeros((3, 3))]}, patient="7654321")
    prepared(tmp_path / "raw", tmp_path / "out", options)
    uids = {
        header.text(name) for header in read_headers(all_files(tmp_path / "raw")) for name in ("SeriesInstanceUID",)
    }
    secrets = {
        "1234567",
        "7654321",
        "Bakker",
        *IDENTITY.values(),
        *uids,
        *(part for value in IDENTITY.values() for part in value.split("^")),
    }
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 5
    for file in files:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        assert [secret for secret in secrets if secret.encode() in content] == [], file.name


@pytest.mark.parametrize("patients", [("1234567",), ("1234567", "7654321")])
def test_folders_that_name_patients_do_not_become_sites(tmp_path, options, patients):
    for patient in patients:
        exported(tmp_path / "exported", patient, patient=patient)
        shutil.move(tmp_path / "exported/clinic" / patient, tmp_path / "raw" / patient)
    refused(tmp_path, options, "they name patients, not sites")


def test_pseudonyms_need_the_secret_and_stay_the_same_with_it(tmp_path):
    """Hospital numbers are short: hashes without a secret can be looked up."""
    salt = load_salt(tmp_path / "salt")
    assert load_salt(tmp_path / "salt") == salt and len(salt) >= 32
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0
    assert pseudonym("4711", salt) == pseudonym("4711", salt) != pseudonym("4711", load_salt(tmp_path / "other"))
    (tmp_path / "short").write_text("abc")
    with pytest.raises(InputError, match="3 bytes"):
        load_salt(tmp_path / "short")


def refused(tmp_path: Path, options: DicomOptions, match: str) -> str:
    with pytest.raises(InputError, match=match) as error:
        prepare_source(IMPORTER, tmp_path / "raw", tmp_path / "out", options)
    assert error.value.fix
    return str(error.value)


def remove_slice(folder: Path, index: int) -> None:
    (headers,) = group_series(read_headers(all_files(folder))).values()
    sort_series(headers)[0][index].path.unlink()


def test_a_series_with_a_gap_is_refused_with_its_folder(tmp_path, options):
    exported(tmp_path / "raw")
    remove_slice(tmp_path / "raw", 3)
    message = refused(tmp_path, options, "gap: 8.00 mm after the slice at -22.00 mm, 4.00 mm elsewhere")
    assert str(tmp_path / "raw/clinic/p1/series") in message


def test_an_organ_that_was_not_drawn_is_refused_with_those_that_were(tmp_path, options):
    exported(tmp_path / "raw", organs=("Bladder", "Femur left"))
    message = refused(tmp_path, options, "rectum not drawn")
    assert "'Femur left'" in message and "RS.dcm" in message


def edit(folder: Path, index: int, **tags) -> None:
    (headers,) = group_series(read_headers(all_files(folder))).values()
    path = sort_series(headers)[0][index].path
    stored = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(stored, name)
        else:
            setattr(stored, name, value)
    stored.save_as(path)


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"ImagePositionPatient": [-10.0, 20.0, -30.0]}, "two slices at one position"),
        ({"ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]}, "differ in ImageOrientationPatient"),
        ({"PixelSpacing": [0.5, 0.5]}, "differ in PixelSpacing"),
        ({"PixelSpacing": None}, "no PixelSpacing"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"SamplesPerPixel": 3}, "a colour image"),
        ({"ImagePositionPatient": [-5.0, 20.0, -22.0]}, "sheared"),
    ],
)
def test_a_series_that_is_no_straight_stack_is_refused(tmp_path, options, tags, match):
    exported(tmp_path / "raw")
    edit(tmp_path / "raw/clinic/p1/series", 2, **tags)
    refused(tmp_path, options, match)


def test_directions_that_are_not_perpendicular_are_refused(tmp_path, options):
    exported(tmp_path / "raw")
    for path in all_files(tmp_path / "raw/clinic/p1/series"):
        stored = pydicom.dcmread(path)
        stored.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.1, 1.0, 0.0]
        stored.save_as(path)
    refused(tmp_path, options, "no pair of perpendicular directions")


@pytest.mark.parametrize("tag", ["SeriesInstanceUID", "ImagePositionPatient", "Rows", "PixelSpacing", "PixelData"])
def test_a_last_slice_that_ends_in_its_header_is_not_lost_silently(tmp_path, options, tag):
    """No gap would show it: the rest of the series is a whole one."""
    exported(tmp_path / "raw")
    (headers,) = group_series(read_headers(all_files(tmp_path / "raw"))).values()
    path = sort_series(headers)[0][-1].path
    end = pydicom.dcmread(path).get_item(tag).value_tell  # where the tag's value begins
    path.write_bytes(path.read_bytes()[: end + 1])
    assert str(path) in refused(tmp_path, options, "belongs to no series|no |without Rows|cannot be read")


def test_patients_without_a_number_are_not_merged_into_one(tmp_path, options):
    for number in range(2):
        exported(tmp_path / "raw", f"p{number}", patient="")
    refused(tmp_path, options, "no PatientID")


def test_a_description_that_is_no_regular_expression_is_refused(tmp_path, options):
    exported(tmp_path / "raw")
    refused(tmp_path, dataclasses.replace(options, series_description="T2("), "no regular expression")


def test_rounded_positions_do_not_shift_the_last_slice(tmp_path):
    """Positions rounded to 0.01 mm, 60 slices: the median distance would be off by 0.1 mm at the end."""
    write_series(tmp_path / "s", np.zeros((60, 4, 4), np.int16))
    stored = sorted(map(pydicom.dcmread, all_files(tmp_path / "s")), key=lambda slice_: slice_.ImagePositionPatient[2])
    for index, slice_ in enumerate(stored):
        slice_.ImagePositionPatient = [0.0, 0.0, round(3.3183 * index, 2)]
        slice_.save_as(slice_.filename)
    last = np.array([[0.0, 0.0, 3.3183 * 59]])
    assert geometry_of(tmp_path / "s").to_voxels(last)[0, 2] == pytest.approx(59, abs=0.005)


def test_contours_beside_the_slices_are_refused(tmp_path, options):
    uids = write_series(tmp_path / "raw/clinic/s", volume())
    geometry = geometry_of(tmp_path / "raw")
    contours = {name: [points_mm(geometry, ring(14, 12, 6, 9.0))] for name in options.organs}
    write_structures(tmp_path / "raw/clinic/RS", uids, contours)
    refused(tmp_path, options, "slice 9 of 6")


def test_open_contours_are_refused(tmp_path, options):
    uids = write_series(tmp_path / "raw/clinic/s", volume())
    geometry = geometry_of(tmp_path / "raw")
    contours = {name: [points_mm(geometry, ring(14, 12, 6, 1.0))] for name in options.organs}
    write_structures(tmp_path / "raw/clinic/RS", uids, contours, kind="OPEN_PLANAR")
    refused(tmp_path, options, "OPEN_PLANAR")


def test_a_folder_without_dicom_is_refused(tmp_path, options):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.txt").write_text("no DICOM")
    refused(tmp_path, options, "no DICOM file")


@pytest.mark.parametrize("orientation", [SAGITTAL, OBLIQUE])
def test_a_mask_has_its_images_grid(tmp_path, options, orientation):
    exported(tmp_path / "raw", orientation=orientation)
    _, (case,) = prepared(tmp_path / "raw", tmp_path / "out", options)
    image, mask = (SimpleITK.ReadImage(str(file)) for file in (case.image, case.mask))
    for name in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(image, name)() == getattr(mask, name)()


def test_the_output_does_not_depend_on_the_names_and_order_of_the_files(tmp_path, options):
    """D40: the original's cases followed the file system's listing order."""
    for number in range(3):
        exported(tmp_path / "raw", f"p{number}", patient=f"47{number}")
    renamed = tmp_path / "renamed/clinic/all"
    renamed.mkdir(parents=True)
    for number, path in enumerate(reversed(all_files(tmp_path / "raw"))):
        shutil.copy(path, renamed / f"{number:03d}")
    for raw in ("raw", "renamed"):
        prepared(tmp_path / raw, tmp_path / f"out_{raw}", options)
    first, second = (tmp_path / "out_raw", tmp_path / "out_renamed")
    files = sorted(path.relative_to(first) for path in first.rglob("*.*") if path.name != "preparation_state.json")
    assert len(files) >= 3 * 2 + 3
    assert [file for file in files if (first / file).read_bytes() != (second / file).read_bytes()] == []
