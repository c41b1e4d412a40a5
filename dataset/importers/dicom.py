"""A tree of DICOM files: any number of patients, studies and series, with structure sets or segmentations.

A case is a series that a structure set (RTSTRUCT) or a segmentation (SEG) was drawn on. Patients and series get
pseudonyms (``dataset.dicom.series.load_salt``); no other tag than those in the options and the geometry is kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from dataset.dicom.annotated import (
    Annotated,
    annotated_series,
    description_fits,
    raw_case,
    spelled_once,
    write_case,
)
from dataset.dicom.series import DEFAULT_SALT_FILE, Header, load_salt, pseudonym
from dataset.images import check_label_ids
from dataset.importer import Found, Importer, LeftOut, RawCase
from dataset.key_values import option

CHANNEL_OF_MODALITY = {"CT": "CT", "MR": "MR"}
SITE_TAGS = ("ManufacturerModelName", "Manufacturer", "InstitutionName", "StationName", "MagneticFieldStrength")


@dataclass(frozen=True)
class DicomOptions:
    """Options of the command."""

    organs: dict[str, int] = option({}, "structure or segment name:label id, e.g. Bladder:1,Rectum:2")
    series_description: str = option("", "a regular expression; only series that match")
    modality: str = option("", "only series of this modality: CT, MR, ...")
    site_from: str = option("folder", f"folder (the first below --raw), or one of {', '.join(SITE_TAGS)}")
    salt_file: str = option(DEFAULT_SALT_FILE, "the secret behind the pseudonyms; it stays in the hospital")


def find(raw: Path, options: DicomOptions) -> Found:
    """List the series that have a structure set or segmentation; only headers are read.

    Raises:
        InputError: no organs asked for, no DICOM, an unknown site tag, or folders that name patients, not sites.
    """
    _check_options(options)
    salt = load_salt(Path(options.salt_file))
    annotated, left_out = annotated_series(raw, salt)
    if options.site_from == "folder":
        _check_folders_are_sites(annotated, raw)
    cases, modalities = [], set()
    for item in annotated:
        first = item.images[0]
        patient = pseudonym(first.text("PatientID"), salt)
        # half a pseudonym of the series: independent of all other series
        name = f"dicom_{patient}_{pseudonym(first.text('SeriesInstanceUID'), salt)[:6]}"
        reason = _not_wanted(first, options)
        if reason:
            left_out.append(LeftOut(name, reason))
            continue
        modalities.add(first.text("Modality"))
        columns = {"patient": patient, "site": _site(first, raw, options.site_from)}
        cases.append(raw_case(name, item, columns, {"organs": spelled_once(options.organs)}))
    channels = {CHANNEL_OF_MODALITY.get(modality, "image") for modality in modalities}
    return Found(tuple(cases), dict(options.organs), tuple(left_out), (), tuple(channels) if len(channels) == 1 else ())


def convert(case: RawCase, out: Path) -> None:
    """Write a volume and the label ids of the wanted organs in its grid.

    Raises:
        InputError: a series that is not whole, contours off its slices, or an organ that was not drawn.
    """
    write_case(case, out, must_have_all=True)


IMPORTER = Importer(
    name="dicom",
    summary="DICOM series with RTSTRUCT or SEG, any number of patients (3D)",
    options=DicomOptions,
    find=find,
    convert=convert,
)


def _check_options(options: DicomOptions) -> None:
    check_label_ids(
        set(options.organs.values()), where="organs", fix="give organs=Bladder:1,Rectum:2, ids from 1 without gaps"
    )
    if options.site_from not in ("folder", *SITE_TAGS):
        raise InputError(
            f"{options.site_from!r} is not a choice", where="site_from", fix=f"use folder or one of {SITE_TAGS}"
        )


def _check_folders_are_sites(annotated: Sequence[Annotated], raw: Path) -> None:
    """If each patient had a folder, their names or numbers would get into the table as sites."""
    patients: dict[str, set[str]] = defaultdict(set)
    for item in annotated:
        patients[_folder(item.images[0], raw)].add(item.images[0].text("PatientID"))
    alone = {folder: found for folder, found in patients.items() if len(found) == 1}
    named = any(patient in folder for folder, found in alone.items() for patient in found)
    if named or (len(alone) == len(patients) > 1):
        raise InputError(
            f"{len(alone)} of {len(patients)} folders hold one patient, so they name patients, not sites",
            where=raw,
            fix=f"make a folder for each site and put its patients there, or set site_from to one of {SITE_TAGS}",
        )


def _not_wanted(header: Header, options: DicomOptions) -> str:
    if options.modality and header.text("Modality") != options.modality:
        return f"modality is not {options.modality}"
    if not description_fits(header, options.series_description):
        return "the series description does not match"
    return ""


def _site(header: Header, raw: Path, site_from: str) -> str:
    text = _folder(header, raw) if site_from == "folder" else header.text(site_from)
    site = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")
    if not site:
        raise InputError(f"the file has no {site_from}", where=header.path, fix="choose another site_from")
    return site


def _folder(header: Header, raw: Path) -> str:
    folders = header.path.relative_to(raw).parts[:-1]
    if not folders:
        raise InputError(
            "no folder names the site of this file",
            where=header.path,
            fix="put it into a folder, or choose another site_from",
        )
    return folders[0]
