"""QaTa-COV19 v2: chest X-rays with masks of COVID-19 pneumonia; patients dealt to any number of sites.

Layout: ``Train Set`` and ``Test Set``, each with ``Images/*.png`` and ``Ground-truths/mask_<image>``. Only names that
carry a patient (``sub-S<id>_...``) are used, as in HyFree-S3: the others may show the same patients.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InputError
from dataset.images import read_image, safe_name
from dataset.importer import Found, Importer, LeftOut, RawCase
from dataset.key_values import option
from dataset.raw_files import binary_mask, deal_to_sites, equal_files, holds, in_colours, the_folder, write_pair

SUBSETS = {"train": "Train Set", "test": "Test Set"}
_PATIENT = re.compile(r"sub-S(\d+)_")
_PARTS = [f"{subset}/{part}/" for subset in SUBSETS.values() for part in ("Images", "Ground-truths")]
_LAYOUT = "'Train Set' and 'Test Set', each with 'Images' and 'Ground-truths'"


@dataclass(frozen=True)
class QataOptions:
    """Options of the command."""

    n_sites: tuple[int, ...] = option((2, 8), "numbers of sites; columns site_<n>, and site is the first of them")
    mask_threshold: int | None = option(None, "accept masks with grey levels: foreground from this level on")


def find(raw: Path, options: QataOptions) -> Found:
    """List the images of both subsets; masks are looked up, no image is decoded.

    Raises:
        InputError: another layout, or an image without its mask.
    """
    if not options.n_sites or min(options.n_sites) < 1:
        raise InputError(
            f"{options.n_sites} are not numbers of sites", where="n_sites", fix="give numbers from 1, for example 2,8"
        )
    folder = the_folder(raw, holds(*_PARTS), _LAYOUT)
    files = [file for subset in SUBSETS.values() for file in sorted((folder / subset / "Images").glob("[!.]*.png"))]
    left_out = [
        LeftOut(_label(file), "the name has no patient (sub-S<id>_...)")
        for file in files
        if not _PATIENT.search(file.name)
    ]
    with_patient = [file for file in files if _PATIENT.search(file.name)]
    copies = _copies(with_patient)
    cases = [_raw_case(file, options) for file in with_patient if file not in copies]
    left_out += [LeftOut(_label(file), reason) for file, reason in copies.items()]
    return Found(tuple(_with_sites(cases, options.n_sites)), {"foreground": 1}, tuple(left_out))


def convert(case: RawCase, out: Path) -> None:
    """Write a grey image and its mask.

    Raises:
        InputError: unreadable files, sizes that differ, or grey levels in the mask and no ``mask_threshold``.
    """
    image_file, mask_file = case.files
    mask = binary_mask(mask_file, case.recipe["mask_threshold"])
    write_pair(case.name, out, in_colours(read_image(image_file), 1), mask, image_file, mask_file)


IMPORTER = Importer(
    name="qata",
    summary="QaTa-COV19 v2, chest X-rays (2D, grey), masks of COVID-19 pneumonia",
    options=QataOptions,
    find=find,
    convert=convert,
)


def _label(file: Path) -> str:
    return f"{file.parent.parent.name}/{file.name}"


def _copies(files: Sequence[Path]) -> dict[Path, str]:
    """Files whose bytes are those of an earlier one (train before test, then by name), and why each is left out."""
    copies = {}
    for first, *others in equal_files(files):
        for file in others:
            masks = {_mask_of(image).read_bytes() for image in (first, file) if _mask_of(image).is_file()}
            differ = ", whose mask is another" if len(masks) > 1 else ""
            copies[file] = f"the same image as {_label(first)}{differ}"
    return copies


def _mask_of(image: Path) -> Path:
    return image.parent.parent / "Ground-truths" / f"mask_{image.name}"


def _raw_case(image: Path, options: QataOptions) -> RawCase:
    """The subset is part of the name, as one name may occur in both subsets."""
    mask, found = _mask_of(image), _PATIENT.search(image.name)
    assert found is not None
    if not mask.is_file():
        raise InputError(f"there is no mask {mask}", where=image, fix="unpack the download again")
    subset = next(name for name, folder in SUBSETS.items() if folder == image.parent.parent.name)
    columns = {"patient": str(int(found.group(1))), "subset": subset}
    recipe = {"mask_threshold": options.mask_threshold}
    return RawCase(safe_name(f"{subset}_{image.stem}"), (image, mask), columns, recipe)


def _with_sites(cases: Sequence[RawCase], n_sites: Sequence[int]) -> list[RawCase]:
    patients = [case.columns["patient"] for case in cases]
    site_of = {n: deal_to_sites(patients, n) for n in n_sites}
    placed = []
    for case, patient in zip(cases, patients, strict=True):
        sites = {f"site_{n}": site_of[n][patient] for n in n_sites}
        placed.append(replace(case, columns={**case.columns, "site": site_of[n_sites[0]][patient], **sites}))
    return placed
