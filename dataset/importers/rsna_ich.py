"""RSNA Intracranial Hemorrhage Detection: CT slices (DICOM) with five kinds of bleeding and ``any``; no masks.

Layout: ``stage_2_train.csv`` with rows ``ID_<image>_<subtype>,<0 or 1>``, six an image, some of them twice, and
``stage_2_train/ID_<image>.dcm``. The patient is in the DICOM headers alone; of it only a salted hash is kept.
Pixels are written as 16-bit grey: Hounsfield units + 1024.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from dataset.images import write_array
from dataset.importer import Found, Importer, LeftOut, RawCase, Unusable
from dataset.key_values import option
from dataset.raw_files import deal_to_sites, holds, the_folder
from dataset.table import read_rows

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
HU_OFFSET = 1024
_TABLE, _FOLDER = "stage_2_train.csv", "stage_2_train"
_N_READERS = 8  # headers of many small files: waiting for the disk, not computing


@dataclass(frozen=True)
class RsnaIchOptions:
    """Options of the command."""

    n_sites: int = option(1, "patients are dealt to so many sites")
    salt: str = option("", "text mixed into the hash of the patient's id; keep it to yourself")


def find(raw: Path, options: RsnaIchOptions) -> Found:
    """List the images of the table; equal rows count once.

    Raises:
        InputError: no table, an unknown subtype, contradicting or incomplete rows of an image, or no pydicom.
    """
    root = the_folder(raw, holds(_TABLE), f"'{_TABLE}'")
    labels, n_repeated = read_labels(root / _TABLE)
    files = {image: root / _FOLDER / f"{image}.dcm" for image in sorted(labels)}
    there = {image: file for image, file in files.items() if file.is_file()}
    patients = _patients(there, options.salt)
    site_of = deal_to_sites(patients.values(), options.n_sites)
    columns = {
        image: {"patient": patients[image], "site": site_of[patients[image]], **labels[image]} for image in there
    }
    cases = tuple(RawCase(image, (file,), columns[image]) for image, file in there.items())
    left_out = tuple(LeftOut(image, "the image of the rows is not there") for image in files if image not in there)
    warnings = (f"{n_repeated} rows of {_TABLE} repeat others and count once",) if n_repeated else ()
    return Found(cases, {}, left_out, warnings)


def convert(case: RawCase, out: Path) -> None:
    """Write one slice as 16-bit PNG, Hounsfield units + 1024.

    Raises:
        Unusable: pixels that cannot be decoded (the set has a truncated file), or that are all equal.
    """
    import pydicom

    try:
        stored = pydicom.dcmread(case.files[0])
        raw = stored.pixel_array
    except (ValueError, AttributeError, RuntimeError, pydicom.errors.InvalidDicomError) as error:
        raise Unusable(f"its pixels cannot be decoded ({type(error).__name__})") from error
    units = raw.astype(np.float64) * float(stored.get("RescaleSlope", 1)) + float(stored.get("RescaleIntercept", 0))
    pixels = np.clip(np.rint(units) + HU_OFFSET, 0, np.iinfo(np.uint16).max).astype(np.uint16)
    if pixels.min() == pixels.max():
        raise Unusable("all its pixels are equal")
    write_array(out / "images" / f"{case.name}.png", pixels)


def read_labels(table: Path) -> tuple[dict[str, dict[str, str]], int]:
    """Image -> subtype -> ``0`` or ``1``, and the number of rows that repeat another.

    Raises:
        InputError: a row that is not ``ID_<image>_<subtype>,<0 or 1>``, rows that contradict each other, or a
            missing subtype.
    """
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    n_repeated = 0
    for line, row in read_rows(table, ("ID", "Label")):
        image, _, subtype = row["ID"].rpartition("_")
        if not image.startswith("ID_") or subtype not in SUBTYPES or row["Label"] not in ("0", "1"):
            raise InputError(
                f"the row {row['ID']!r}, {row['Label']!r} is not ID_<image>_<subtype>,<0 or 1>",
                where=line,
                fix="download the table again",
            )
        if labels[image].setdefault(subtype, row["Label"]) != row["Label"]:
            raise InputError(f"{row['ID']!r} is both 0 and 1", where=line, fix="keep one of the rows")
        n_repeated += 1
    for image, subtypes in labels.items():
        missing = [subtype for subtype in SUBTYPES if subtype not in subtypes]
        if missing:
            raise InputError(f"image {image!r} has no row for {missing}", where=table, fix="download the table again")
        n_repeated -= len(subtypes)
    return {image: {subtype: of[subtype] for subtype in SUBTYPES} for image, of in labels.items()}, n_repeated


IMPORTER = Importer(
    name="rsna_ich",
    summary="RSNA Intracranial Hemorrhage Detection, CT slices (2D, 16 bit) with six labels, no masks",
    options=RsnaIchOptions,
    find=find,
    convert=convert,
)


def _patients(files: Mapping[str, Path], salt: str) -> dict[str, str]:
    import pydicom

    def read(file: Path) -> str:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
        except pydicom.errors.InvalidDicomError as error:
            raise InputError(f"it is no DICOM file ({error})", where=file, fix="unpack the download again") from error
        if not header.get("PatientID"):
            raise InputError("the header has no PatientID", where=file, fix="unpack the download again, or remove it")
        return hashlib.sha256(f"{salt}\x1f{header.PatientID}".encode()).hexdigest()[:16]

    with ThreadPoolExecutor(_N_READERS) as executor:
        return dict(zip(files, executor.map(read, files.values()), strict=True))
