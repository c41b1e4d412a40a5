"""Series of DICOM images that a structure set (RTSTRUCT) or a segmentation (SEG) was drawn on.

Names in reports are pseudonyms (``dataset.dicom.series.load_salt``): files of an export carry patients' names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from dataset.dicom.rtstruct import drawn_structures, read_structures, structure_names
from dataset.dicom.seg import drawn_segments, read_segments, segment_names
from dataset.dicom.series import (
    RTSTRUCT,
    SEG,
    Header,
    all_files,
    as_image,
    group_series,
    match_to_series,
    pseudonym,
    read_headers,
    read_volume,
    sort_series,
    write_nifti,
)
from dataset.importer import LeftOut, RawCase


@dataclass(frozen=True)
class Annotated:
    """A series with what was drawn on it."""

    images: tuple[Header, ...]
    annotation: Header

    @property
    def names(self) -> dict[int, str]:
        """Numbers and names of its structures or segments."""
        return structure_names(self.annotation) if self.is_structure_set else segment_names(self.annotation)

    @property
    def is_structure_set(self) -> bool:
        """Whether it was drawn as contours (RTSTRUCT); else it is a SEG."""
        return self.annotation.text("Modality") == RTSTRUCT

    def drawn(self) -> dict[int, str]:
        """``names`` without those that nothing was drawn of; reads the annotation's file."""
        numbers = (drawn_structures if self.is_structure_set else drawn_segments)(self.annotation.path)
        return {number: name for number, name in self.names.items() if number in numbers}


def annotated_series(raw: Path, salt: bytes) -> tuple[list[Annotated], list[LeftOut]]:
    """Series with a structure set or segmentation, by their identifiers; and what has no partner.

    Names in the report are pseudonyms: folders and files of an export carry patients' names and numbers.

    Raises:
        InputError: no DICOM file, a series with several annotations, or one without a patient's id.
    """
    files = all_files(raw)
    headers = read_headers(files)
    if not headers:
        raise InputError("there is no DICOM file", where=raw, fix="give the folder with the exported series as --raw")
    series = group_series(headers)
    annotations: dict[str, list[Header]] = defaultdict(list)
    left_out = [LeftOut("file", "no DICOM")] * (len(files) - len(headers))
    for header in headers:
        if header.text("Modality") in (RTSTRUCT, SEG):
            uid = match_to_series(header, series)
            if uid is None:
                name = f"{header.text('Modality')} of {pseudonym(header.text('PatientID'), salt)}"
                left_out.append(LeftOut(name, "a structure set or segmentation without its series"))
            else:
                annotations[uid].append(header)
    for uid, found in annotations.items():
        if not series[uid][0].text("PatientID"):
            raise InputError(
                "it has no PatientID, so its patient could not be told from others",
                where=series[uid][0].path,
                fix="export with a number for each patient (it becomes a pseudonym)",
            )
        if len(found) > 1:
            raise InputError(
                f"one series has {len(found)} structure sets or segmentations ({found[1].path.name}, ...)",
                where=found[0].path,
                fix="keep the one that is meant",
            )
    n_without = len(set(series) - set(annotations))
    left_out += [LeftOut("series", "nothing was drawn on it")] * n_without
    return [Annotated(tuple(series[uid]), annotations[uid][0]) for uid in sorted(annotations)], left_out


def raw_case(name: str, item: Annotated, columns: Mapping[str, str], recipe: Mapping[str, object]) -> RawCase:
    """The case of an annotated series; the annotation is its last file."""
    files = (*sorted(header.path for header in item.images), item.annotation.path)
    return RawCase(name, files, columns, recipe)


def description_fits(header: Header, pattern: str) -> bool:
    """Whether the regular expression is found in the series' description; the description itself is not kept.

    Raises:
        InputError: no regular expression.
    """
    try:
        return re.search(pattern, header.text("SeriesDescription")) is not None
    except re.error as error:
        raise InputError(
            f"{pattern!r} is no regular expression ({error})", where="series_description", fix="escape it: T2\\(TRA\\)"
        ) from error


def spelled_once(organs: Mapping[str, int]) -> dict[str, int]:
    """Names in one spelling: lower case, without spaces, dashes and underscores."""
    return {_spelling(name): label for name, label in organs.items()}


def labels_by_number(names: Mapping[int, str], organs: Mapping[str, int]) -> dict[int, int]:
    """Structure or segment number -> label id, of those in ``organs`` (spelled once)."""
    return {number: organs[_spelling(name)] for number, name in names.items() if _spelling(name) in organs}


def write_case(case: RawCase, out: Path, *, must_have_all: bool) -> None:
    """Read, cut, and write a case; overlapping organs go to the lower label, as in the original.

    Raises:
        InputError: see ``convert``.
    """
    import SimpleITK

    *image_files, annotation_file = case.files
    headers, geometry = sort_series(read_headers(image_files, n_threads=1))
    item = Annotated(tuple(headers), *read_headers([annotation_file], n_threads=1))
    names = item.names
    wanted = labels_by_number(names, case.recipe["organs"])
    read = read_structures if item.is_structure_set else read_segments
    masks = read(annotation_file, geometry, wanted)
    missing = set(case.recipe["organs"].values()) - {wanted[number] for number in masks}
    if not masks or (must_have_all and missing):
        lacking = sorted(name for name, label in case.recipe["organs"].items() if label in missing)
        raise InputError(
            f"{', '.join(lacking)} not drawn; there are {sorted(names.values())}",
            where=annotation_file,
            fix="correct the names in organs=, or remove the series",
        )
    volume = read_volume(headers, geometry)
    labels = as_image(_combine(masks, wanted, geometry.size[::-1]), geometry)
    kept = geometry.size[2] - int(case.recipe.get("n_slices_to_cut", 0))
    if kept < 1:
        raise InputError(
            f"all of its {geometry.size[2]} slices are cut", where=annotation_file, fix="correct slices to remove"
        )
    labels.CopyInformation(volume)
    write_nifti(out / "images" / f"{case.name}.nii.gz", SimpleITK.Image(volume[:, :, :kept]))
    write_nifti(out / "masks" / f"{case.name}.nii.gz", SimpleITK.Image(labels[:, :, :kept]))


def _combine(masks: Mapping[int, np.ndarray], labels: Mapping[int, int], shape: Sequence[int]) -> np.ndarray:
    combined = np.zeros(shape, np.uint8)
    for number in sorted(masks, key=lambda number: -labels[number]):
        combined[masks[number]] = labels[number]
    return combined


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()
