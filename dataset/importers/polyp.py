"""Polyps in colonoscopy: HyperKvasir's segmentation set (site A) and CVC-ClinicDB (site B), RGB.

HyperKvasir says nothing of patients: each image counts as one, and no split by patient can be claimed (D14). Frames of
CVC-ClinicDB come from 29 sequences, which take the place of patients. JPEG masks have grey edges: 128 is the threshold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from dataset.images import read_image, safe_name
from dataset.importer import Found, Importer, LeftOut, RawCase, Unusable
from dataset.key_values import option
from dataset.raw_files import binary_mask, find_folders, holds, in_colours, the_folder, write_pair

# HyFree-S3's list: one image of each pair of equal images of HyperKvasir
DUPLICATES = (
    "19d0d3bb-5d6c-4ac4-be99-47b9517c8927",
    "3e67665f-b495-42fb-8ffe-ed173204503d",
    "84ca86b4-e3b9-461d-995f-a96241ce7bba",
    "3c034222-f389-4f6c-93f2-0d5606fe19ef",
)
# fmt: off
LAST_FRAMES = (
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428, 447, 466, 478, 503,
    528, 546, 571, 591, 612,
)
# fmt: on
_HYPERKVASIR = "'images' and 'masks' with .jpg files (HyperKvasir's 'segmented-images')"
_CLINICDB = "'Original' and 'Ground Truth' with numbered .tif or .png files (CVC-ClinicDB)"
_FRAME_ENDINGS = (".tif", ".tiff", ".png")  # in the order of preference


@dataclass(frozen=True)
class PolypOptions:
    """Options of the command."""

    mask_threshold: int = option(128, "grey levels from here on are polyp")
    last_frames: tuple[int, ...] = option(LAST_FRAMES, "last frame of each sequence of CVC-ClinicDB")


def find(raw: Path, options: PolypOptions) -> Found:
    """List both sets, found by what their folders contain.

    Raises:
        InputError: one of them is not there, an image has no mask, or the table of sequences does not fit the frames.
    """
    hyperkvasir = the_folder(raw, holds("images/[!.]*.jpg", "masks/[!.]*.jpg"), _HYPERKVASIR)
    images = sorted((hyperkvasir / "images").glob("[!.]*.jpg"))
    kept = [image for image in images if image.stem not in DUPLICATES]
    recipe = {"mask_threshold": options.mask_threshold}
    cases = [_hyperkvasir_case(image, hyperkvasir / "masks" / image.name, recipe) for image in kept]
    frames = _frames(_clinicdb_folder(raw))
    sequence_of = assign_sequences(frames, options.last_frames, where=raw)
    cases += [_clinicdb_case(number, sequence_of[number], files, recipe) for number, files in sorted(frames.items())]
    left_out = [
        LeftOut(image.stem, "a duplicate of another image of HyperKvasir")
        for image in images
        if image.stem in DUPLICATES
    ]
    warning = "site A (HyperKvasir) has no patients: each image counts as one, so no split by patient can be claimed"
    return Found(tuple(cases), {"polyp": 1}, tuple(left_out), (warning,))


def convert(case: RawCase, out: Path) -> None:
    """Write an RGB image and its thresholded mask.

    A mask without a polyp is left out: every image of both sets shows one, so the annotation is missing, and neither a
    training nor a Dice should count it as normal mucosa.

    Raises:
        InputError: unreadable files or sizes that differ.
        Unusable: an empty mask.
    """
    image_file, mask_file = case.files
    mask = binary_mask(mask_file, case.recipe["mask_threshold"])
    if not mask.any():
        raise Unusable(f"no pixel of the mask reaches {case.recipe['mask_threshold']}")
    write_pair(case.name, out, in_colours(read_image(image_file), 3), mask, image_file, mask_file)


def assign_sequences(frames: Iterable[int], last_frames: Sequence[int], where: Path) -> dict[int, int]:
    """Frame number -> index (from 1) of its sequence; ``last_frames`` must fit the frames exactly.

    Raises:
        InputError: a table that does not ascend, frames beyond its end, or numbers it covers that are not there.
    """
    present = set(frames)
    if not last_frames or list(last_frames) != sorted(set(last_frames)) or last_frames[0] < 1:
        raise InputError(
            f"the last frames {list(last_frames)} do not ascend",
            where="last_frames",
            fix="give ascending frame numbers",
        )
    beyond = sorted(number for number in present if not 1 <= number <= last_frames[-1])
    if beyond:
        raise InputError(
            f"the table of sequences ends at frame {last_frames[-1]} and misses frames {_listed(beyond)}",
            where=where,
            fix="give the last frame of every sequence as last_frames=25,50,...",
        )
    missing = sorted(set(range(1, last_frames[-1] + 1)) - present)
    if missing:
        raise InputError(
            f"frames {_listed(missing)} of 1 to {last_frames[-1]} are not there",
            where=where,
            fix="unpack CVC-ClinicDB again, or give the last_frames of the sequences you have",
        )
    return {number: int(np.searchsorted(last_frames, number)) + 1 for number in sorted(present)}


IMPORTER = Importer(
    name="polyp",
    summary="HyperKvasir (site A) and CVC-ClinicDB (site B), endoscopy (2D, RGB), masks of polyps",
    options=PolypOptions,
    find=find,
    convert=convert,
)


def _is_clinicdb(folder: Path) -> bool:
    parts = [folder / "Original", folder / "Ground Truth"]
    return all(part.is_dir() and _numbered(part) for part in parts)


def _clinicdb_folder(raw: Path) -> Path:
    """The download has the frames twice, as TIFF and as PNG: the TIFF ones are taken where they are there.

    Raises:
        InputError: none, or several of one format.
    """
    by_ending: dict[str, list[Path]] = {}
    for folder in find_folders(raw, _is_clinicdb):
        first = next(iter(_numbered(folder / "Original").values()))
        by_ending.setdefault(first.suffix.lower(), []).append(folder)
    preferred = next((by_ending[ending] for ending in _FRAME_ENDINGS if ending in by_ending), [])
    return the_folder(raw, preferred.__contains__, _CLINICDB)


def _numbered(folder: Path) -> dict[int, Path]:
    """Frame number -> file, of the preferred format there is."""
    files = sorted(file for file in folder.iterdir() if re.fullmatch(r"\d+", file.stem))
    for ending in _FRAME_ENDINGS:
        numbered = {int(file.stem): file for file in files if file.suffix.lower() == ending}
        if numbered:
            return numbered
    return {}


def _frames(folder: Path) -> dict[int, tuple[Path, Path]]:
    images, masks = _numbered(folder / "Original"), _numbered(folder / "Ground Truth")
    single = sorted(set(images) ^ set(masks))
    if single:
        raise InputError(
            f"frames {_listed(single)} have an image or a mask, not both", where=folder, fix="unpack CVC-ClinicDB again"
        )
    return {number: (images[number], masks[number]) for number in images}


def _hyperkvasir_case(image: Path, mask: Path, recipe: dict[str, int]) -> RawCase:
    if not mask.is_file():
        raise InputError(f"there is no mask {mask}", where=image, fix="unpack HyperKvasir's segmented images again")
    name = f"hyperkvasir_{safe_name(image.stem)}"
    return RawCase(name, (image, mask), {"patient": name, "site": "A"}, recipe)


def _clinicdb_case(number: int, sequence: int, files: tuple[Path, Path], recipe: dict[str, int]) -> RawCase:
    columns = {"patient": f"clinicdb_sequence_{sequence:02d}", "site": "B", "frame": str(number)}
    return RawCase(f"clinicdb_{number:03d}", files, columns, recipe)


def _listed(numbers: Sequence[int]) -> str:
    """1, 4 to 9, 12."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
