"""A BIDS tree with masks under ``derivatives/<name>/``; a patient is a subject, participants.tsv has the sites.

A mask belongs to the image whose entities (``sub-..``, ``ses-..``, ...) are all in its name. What its name has besides,
its tail, tells kinds of masks apart: ``seg-axonmyelin-manual``, ``dseg``, ``label-lesion_mask``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from dataset.images import ENDINGS, read_image, read_mask, stem
from dataset.importer import Found, Importer, LeftOut, RawCase
from dataset.key_values import option
from dataset.raw_files import holds, in_colours, nearest_label, the_folder, write_pair
from dataset.table import read_rows


@dataclass(frozen=True)
class BidsOptions:
    """Options of the command."""

    derivative: str = option("labels", "the folder under derivatives/ that holds the masks")
    suffix: str = option("", "only images of this suffix: T2w, SEM, ...")
    tail: str = option("", "only masks whose name has this besides the image's: dseg, ...")
    labels: dict[str, int] = option({"foreground": 1}, "name:id, ids 1, 2, ... without gaps")
    mask_values: dict[int, int] = option({}, "value in the files:id, with 0:0; default: values are ids, or 0/255")
    mask_tolerance: int = option(0, "take the nearest of mask_values within this distance")
    site_column: str = option("", "column of participants.tsv that names the site")
    site: str = option("A", "the site of all where there is no site_column")
    n_channels: int = option(0, "write all 2D images as grey (1) or RGB (3); 0: as stored")


def find(raw: Path, options: BidsOptions) -> Found:
    """List the images that have a mask.

    Raises:
        InputError: no BIDS tree, no such derivative or column, or an image with several masks.
    """
    root = the_folder(raw, holds("sub-*/", "derivatives/"), "'sub-*' folders and 'derivatives'")
    masks_root = root / "derivatives" / options.derivative
    if not masks_root.is_dir():
        present = sorted(folder.name for folder in (root / "derivatives").iterdir() if folder.is_dir())
        raise InputError(
            f"there is no such derivative; there are {present}",
            where=masks_root,
            fix="correct derivative=...",
        )
    images = [file for file in _image_files(root) if not options.suffix or _suffix(file) == options.suffix]
    masks_of = _match(images, _image_files(masks_root))
    chosen = {image: _choose(image, masks_of[image], options) for image in images}
    sites = _sites(root, options)
    cases = tuple(_raw_case(image, mask, sites, options) for image, mask in chosen.items() if mask)
    left_out = tuple(LeftOut(stem(image), "no mask in the derivative") for image, mask in chosen.items() if not mask)
    return Found(cases, options.labels, left_out)


def convert(case: RawCase, out: Path) -> None:
    """Write an image and its label ids.

    Raises:
        InputError: unreadable files, masks of another size, or with values outside the map.
    """
    image_file, mask_file = case.files
    image = read_image(image_file)
    if case.recipe["n_channels"] and not image.is_volume:
        image = in_colours(image, case.recipe["n_channels"])
    mask_values = {int(value): int(label) for value, label in case.recipe["mask_values"].items()}
    if case.recipe["mask_tolerance"]:
        mask = nearest_label(mask_file, mask_values, case.recipe["mask_tolerance"])
    else:
        mask = read_mask(mask_file, mask_values or None, case.recipe["labels"])
    write_pair(case.name, out, image, mask, image_file, mask_file)


IMPORTER = Importer(
    name="bids",
    summary="a BIDS tree with masks under derivatives/ (2D or 3D)",
    options=BidsOptions,
    find=find,
    convert=convert,
)


def _image_files(root: Path) -> list[Path]:
    files = (file for subject in root.glob("sub-*") if subject.is_dir() for file in subject.rglob("[!.]*"))
    return sorted(file for file in files if file.is_file() and file.name.lower().endswith(ENDINGS))


def _tokens(file: Path) -> list[str]:
    return stem(file).split("_")


def _suffix(file: Path) -> str:
    return _tokens(file)[-1]


def _match(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, list[Path]]:
    """Masks of each image; where some repeat its whole name, suffix included, only these."""
    of_subject: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        of_subject[_tokens(mask)[0]].append(mask)
    matched = {}
    for image in images:
        tokens = set(_tokens(image))
        entities = {token for token in tokens if "-" in token}
        candidates = [mask for mask in of_subject[_tokens(image)[0]] if entities <= set(_tokens(mask))]
        whole = [mask for mask in candidates if tokens <= set(_tokens(mask))]
        matched[image] = whole or candidates
    return matched


def _tail(image: Path, mask: Path) -> str:
    own = set(_tokens(image))
    return "_".join(token for token in _tokens(mask) if token not in own)


def _choose(image: Path, masks: Sequence[Path], options: BidsOptions) -> Path | None:
    fitting = [mask for mask in masks if not options.tail or _tail(image, mask) == options.tail]
    if len(fitting) > 1:
        tails = sorted(_tail(image, mask) for mask in fitting)
        raise InputError(f"it has the masks {tails}", where=image, fix=f"choose one, for example tail={tails[0]}")
    return fitting[0] if fitting else None


def _sites(root: Path, options: BidsOptions) -> Mapping[str, str]:
    if not options.site_column:
        return defaultdict(lambda: options.site)
    rows = read_rows(root / "participants.tsv", ("participant_id", options.site_column))
    return {row["participant_id"]: row[options.site_column] for _, row in rows}


def _raw_case(image: Path, mask: Path, sites: Mapping[str, str], options: BidsOptions) -> RawCase:
    """The stem is the name: BIDS makes it unique; entities become columns."""
    subject = _tokens(image)[0]
    if options.site_column and not sites.get(subject):
        raise InputError(
            f"participants.tsv has no {options.site_column} for {subject}", where=image, fix="fill in the table"
        )
    entities = dict(token.split("-", 1) for token in _tokens(image)[1:] if "-" in token)
    columns = {**entities, "suffix": _suffix(image), "patient": subject, "site": sites[subject]}
    recipe = {
        "labels": dict(options.labels),
        "mask_values": {str(value): label for value, label in options.mask_values.items()},
        "mask_tolerance": options.mask_tolerance,
        "n_channels": options.n_channels,
    }
    return RawCase(stem(image), (image, mask), columns, recipe)
