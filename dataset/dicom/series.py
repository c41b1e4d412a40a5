"""DICOM series as volumes: what belongs together, in which order, and whether it is whole.

Only the tags listed here are read, and none of them identifies anyone in the output: of the patient's id a salted hash
is kept, of all unique identifiers nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError
from common.files import atomic_path
from common.volumes import read_itk

if TYPE_CHECKING:
    import SimpleITK

HEADER_TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "Modality"),
    *("SeriesDescription", "Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "InstitutionName"),
    *("StationName", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "ReferencedFrameOfReferenceSequence"),
    *("StructureSetROISequence", "ReferencedSeriesSequence", "SegmentSequence"),
)
RTSTRUCT, SEG = "RTSTRUCT", "SEG"
GAP_TOLERANCE = 0.01  # of the slice distance
DIRECTION_TOLERANCE = 1e-3
MIN_SALT_BYTES = 16
PSEUDONYM_DIGITS = 12
ORIGINAL_SERIES = "export the original series, not a screen capture"
DEFAULT_SALT_FILE = "~/.autoshare_pseudonym_salt"


@dataclass(frozen=True)
class Header:
    """What is known of one file: its path and the allowed tags (absent ones are ``None``)."""

    path: Path
    tags: dict[str, Any]

    def text(self, name: str) -> str:
        """A tag as text, empty where it is absent."""
        value = self.tags.get(name)
        return "" if value is None else str(value).strip()


@dataclass(frozen=True)
class Geometry:
    """A series' grid. ``axes``: rows are the directions of x (columns), y (rows) and z (slices), in patient space."""

    size: tuple[int, int, int]  # columns, rows, slices
    spacing_mm: tuple[float, float, float]  # x, y, z
    origin_mm: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], ...]

    def to_voxels(self, points_mm: np.ndarray) -> np.ndarray:
        """Points (n, 3) of patient space as (x, y, z) voxel coordinates; integers are centres of voxels."""
        offsets = np.asarray(points_mm, float) - np.array(self.origin_mm)
        return np.asarray(offsets @ np.array(self.axes).T / np.array(self.spacing_mm))


def read_headers(files: Iterable[Path], n_threads: int = 8) -> list[Header]:
    """The allowed tags of all files that are DICOM, sorted by path; pixels are not read.

    Raises:
        InputError: a DICOM file that cannot be read or ends within its header.
    """
    with ThreadPoolExecutor(n_threads) as pool:
        return [header for header in pool.map(_read_header, sorted(files)) if header is not None]


def _read_header(path: Path) -> Header | None:
    import pydicom

    try:
        read = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
        tags = {name: read.get(name) for name in HEADER_TAGS if name in read}
    except pydicom.errors.InvalidDicomError:
        return None
    except (pydicom.errors.BytesLengthException, OSError, EOFError, ValueError, struct.error) as error:
        raise InputError(f"it cannot be read ({error})", where=path, fix="export the file again") from error
    if not tags.get("SeriesInstanceUID"):  # every object of a patient has one
        raise InputError("the DICOM file belongs to no series", where=path, fix="export it again, or remove it")
    return Header(path, tags)


def all_files(raw: Path) -> list[Path]:
    """Every visible file below ``raw``, except directories of DICOM media."""
    files = (path for path in raw.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name != "DICOMDIR" and not path.name.startswith("."))


def group_series(headers: Iterable[Header]) -> dict[str, list[Header]]:
    """Image files by the series they belong to; structure sets and segmentations are no images.

    Raises:
        InputError: an image that ends before its size; left out, it would not be missed at the end of a series.
    """
    from pydicom.uid import UID

    series: dict[str, list[Header]] = defaultdict(list)
    without_size = []
    for header in headers:
        if header.text("Modality") in (RTSTRUCT, SEG):
            continue
        if header.tags.get("Rows"):
            series[header.text("SeriesInstanceUID")].append(header)
        else:
            without_size.append(header)
    for header in without_size:
        is_image = UID(header.text("SOPClassUID")).name.endswith("Image Storage")
        if is_image or header.text("SeriesInstanceUID") in series:
            raise InputError("the slice has no Rows", where=header.path, fix="export the file again")
    return dict(series)


def referenced_series(header: Header) -> set[str]:
    """Series that a structure set or a segmentation was drawn on, as it says."""
    found = {str(item.SeriesInstanceUID) for item in header.tags.get("ReferencedSeriesSequence") or ()}
    for frame in header.tags.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence", ()):
            found |= {str(item.SeriesInstanceUID) for item in study.get("RTReferencedSeriesSequence", ())}
    return found


def match_to_series(header: Header, series: dict[str, list[Header]]) -> str | None:
    """The series of a structure set or segmentation: the one it names, else the only one of its patient and frame."""
    named = sorted(referenced_series(header) & set(series))
    if len(named) == 1:
        return named[0]
    frames = {header.text("FrameOfReferenceUID")}
    frames |= {str(item.FrameOfReferenceUID) for item in header.tags.get("ReferencedFrameOfReferenceSequence") or ()}
    fitting = [
        uid
        for uid, files in sorted(series.items())
        if files[0].text("PatientID") == header.text("PatientID") and files[0].text("FrameOfReferenceUID") in frames
    ]
    return fitting[0] if len(fitting) == 1 and not named else None


def sort_series(headers: Sequence[Header]) -> tuple[list[Header], Geometry]:
    """The slices in the order of their positions along the normal, and their grid.

    Raises:
        InputError: multi-frame or colour files, missing positions or pixel spacing, mixed sizes or orientations, slices
            twice, sheared stacks, or gaps.
    """
    first = headers[0]
    folder = first.path.parent
    for header in headers:
        _check_slice(header)
    _check_equal(headers, folder)
    rows, columns, normal = _axes(first)
    positions = np.array([header.tags["ImagePositionPatient"] for header in headers], float)
    order = np.argsort(positions @ normal, kind="stable")
    distance_mm = _slice_distance(positions[order], normal, folder)
    spacing = [float(value) for value in first.tags["PixelSpacing"]]
    geometry = Geometry(
        size=(int(first.tags["Columns"]), int(first.tags["Rows"]), len(headers)),
        spacing_mm=(spacing[1], spacing[0], distance_mm),
        origin_mm=_triple(positions[order[0]]),
        axes=(_triple(rows), _triple(columns), _triple(normal)),
    )
    return [headers[index] for index in order], geometry


def _check_slice(header: Header) -> None:
    if int(header.tags.get("NumberOfFrames") or 1) > 1:
        raise InputError(
            "it is a multi-frame image", where=header.path, fix="export the series as classic DICOM, one file a slice"
        )
    if int(header.tags.get("SamplesPerPixel") or 1) > 1:
        raise InputError("it is a colour image", where=header.path, fix=ORIGINAL_SERIES)
    for name, n_values in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        if not _are_numbers(header.tags.get(name), n_values):
            raise InputError(f"it has no {name} of {n_values} numbers", where=header.path, fix=ORIGINAL_SERIES)


def _are_numbers(values: Any, n_values: int) -> bool:
    try:
        return np.array(values, float).shape == (n_values,)
    except (TypeError, ValueError):
        return False


def _axes(header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions of columns, rows and slices, (3,) each, as an orthonormal frame: files round their cosines."""
    rows, columns = np.array(header.tags["ImageOrientationPatient"], float).reshape(2, 3)
    if not np.allclose((rows @ rows, columns @ columns, rows @ columns), (1, 1, 0), atol=5 * DIRECTION_TOLERANCE):
        raise InputError(
            f"ImageOrientationPatient {[*rows.tolist(), *columns.tolist()]} is no pair of perpendicular directions",
            where=header.path,
            fix="export the original series",
        )
    rows = rows / np.linalg.norm(rows)
    columns = columns - (columns @ rows) * rows
    columns = columns / np.linalg.norm(columns)
    return rows, columns, np.cross(rows, columns)


def _check_equal(headers: Sequence[Header], folder: Path) -> None:
    def differ(header: Header, name: str, tolerance: float) -> bool:
        here, there = (np.array(part.tags[name], float) for part in (first, header))
        return not np.allclose(here, there, rtol=tolerance, atol=tolerance)

    first = headers[0]
    for header in headers[1:]:
        wrong = [name for name in ("Rows", "Columns") if first.tags[name] != header.tags[name]]
        wrong += [
            name for name in ("ImageOrientationPatient", "PixelSpacing") if differ(header, name, DIRECTION_TOLERANCE)
        ]
        if wrong:
            raise InputError(
                f"slices of one series differ in {', '.join(wrong)} ({first.path.name}, {header.path.name})",
                where=folder,
                fix="keep one acquisition a series; localisers have to be exported as a series of their own",
            )


def _slice_distance(positions: np.ndarray, normal: np.ndarray, folder: Path) -> float:
    """Distance of neighbouring slices in mm, after a look for doubles, gaps and shear."""
    if len(positions) < 2:
        raise InputError("the series has one slice", where=folder, fix="export the whole series")
    steps = np.diff(positions @ normal)
    median = float(np.median(steps))
    if (steps < GAP_TOLERANCE * median).any() or median <= 0:
        index = int(np.argmin(steps))
        raise InputError(
            f"there are two slices at one position ({positions[index].tolist()})",
            where=folder,
            fix="export each acquisition (echo, phase, time) as a series of its own",
        )
    wrong = np.flatnonzero(np.abs(steps - median) > GAP_TOLERANCE * median)
    if wrong.size:
        place = float(positions[wrong[0]] @ normal)
        raise InputError(
            f"there is a gap: {steps[wrong[0]]:.2f} mm after the slice at {place:.2f} mm, {median:.2f} mm elsewhere",
            where=folder,
            fix="export the missing slices, or remove the series",
        )
    across = positions - positions[:1] - np.outer((positions - positions[:1]) @ normal, normal)
    if np.abs(across).max() > GAP_TOLERANCE * median * len(positions):
        raise InputError("the stack is sheared (gantry tilt)", where=folder, fix="resample it to a straight grid first")
    return float(steps.mean())  # files round positions; over the whole stack that hardly counts


def read_volume(headers: Sequence[Header], geometry: Geometry) -> SimpleITK.Image:
    """The sorted slices as one volume in the units of the scanner's rescaling (CT: Hounsfield units, also below 0).

    Raises:
        InputError: a slice that cannot be decoded.
    """
    import SimpleITK

    slices = []
    for header in headers:
        pixels = SimpleITK.GetArrayFromImage(read_itk(header.path, "its pixels cannot be read", "export it again"))
        slices.append(pixels.reshape(pixels.shape[-2:]))
    volume = np.stack(slices)
    whole = np.issubdtype(volume.dtype, np.integer) or not np.any(volume % 1)
    return as_image(volume.astype(np.int16 if whole and np.abs(volume).max() < 2**15 else np.float32), geometry)


def as_image(array: np.ndarray, geometry: Geometry) -> SimpleITK.Image:
    """(slices, rows, columns) in a series' grid."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(np.array(geometry.axes).T.ravel().tolist())
    return image


def write_nifti(path: Path, image: SimpleITK.Image) -> None:
    """Compressed NIfTI without description, dates or any other text, atomically."""
    import SimpleITK

    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    with atomic_path(path) as temporary:
        SimpleITK.WriteImage(image, str(temporary), useCompression=True)


def scanner_of(headers: Sequence[Header]) -> tuple[str, str, str]:
    """Manufacturer, model and field strength (T) of most of the slices; ties go to the first by name."""
    names = ("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength")
    counts = Counter(tuple(header.text(name) for name in names) for header in headers)
    manufacturer, model, field = min(counts, key=lambda scanner: (-counts[scanner], scanner))
    return manufacturer, model, f"{float(field):g}" if field else ""


def load_salt(path: Path) -> bytes:
    """The secret that pseudonyms are made with; drawn and stored, readable by its owner alone, where there is none.

    Hospital numbers are short: without a secret, anyone could hash all of them and look the pseudonyms up. The secret
    must stay in the hospital; the same secret gives the same pseudonyms.

    Raises:
        InputError: a secret of less than 16 bytes.
    """
    file = path.expanduser()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32) + "\n")
    salt = file.read_bytes().strip()
    if len(salt) < MIN_SALT_BYTES:
        raise InputError(
            f"a secret of {len(salt)} bytes", where=file, fix=f"use at least {MIN_SALT_BYTES} random bytes"
        )
    return salt


def pseudonym(identifier: str, salt: bytes) -> str:
    """Twelve hexadecimal digits of HMAC-SHA-256."""
    return hmac.new(salt, identifier.encode(), hashlib.sha256).hexdigest()[:PSEUDONYM_DIGITS]


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
