"""A site's pairs of image and mask for DSL: the generator's slices, and their labels brought to the same geometry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import read_json
from common.image_set import ImageEntry, ImageSet, load_image_set
from dataset.images import read_image, read_mask
from dataset.slices import fit_labels_to_patch, nonzero_box


@dataclass(frozen=True)
class SitePairs:
    """``masks``: (n, height, width) uint8 label ids, in the order of ``images``; ``labels``: id by name, from 1.

    ``n_empty`` slices had no label and are not among them: the generator's instance norm turns a mask that is the same
    everywhere into zeros, and dropout leaves zeros, so that all it can make of an empty mask is a flat image.
    """

    images: ImageSet
    masks: np.ndarray
    labels: dict[str, int]
    n_empty: int


def load_pairs(slices: Path, prepared: Path, planned: Path | None = None) -> SitePairs:
    """The site's training slices with their masks; validation patients' masks must not leave the site either.

    Args:
        slices: folder of the stage of that name (an ``ImageSet``).
        prepared: folder with ``raw/DatasetXXX``, from which the labels of 2D images are read.
        planned: folder with nnU-Net's preprocessed cases, from which those of volumes are read.

    Raises:
        InputError: no labelled training slices, label ids that are not 1, 2, 3, ..., volumes without ``planned``.
    """
    images = load_image_set(slices).of_split("train")
    (dataset,) = sorted((prepared / "raw").glob("Dataset*"))
    labels = {name: value for name, value in read_json(dataset / "dataset.json")["labels"].items() if value != 0}
    if sorted(labels.values()) != list(range(1, len(labels) + 1)):
        raise InputError(f"labels {labels}", where=dataset / "dataset.json", fix="number them 1, 2, 3, ...")
    if not images.info.volumetric:
        maps = _flat_masks(images, dataset, labels)
    elif planned is not None:
        maps = _volume_masks(images, planned)
    else:
        raise InputError("volumes without their plan", where=slices, fix="pass the site's plan folder")
    size_px, scale = (images.images.shape[-2], images.images.shape[-1]), images.info.scale
    fitted = [fit_labels_to_patch(label_map, size_px, scale) for label_map in maps]
    shown = [index for index, mask in enumerate(fitted) if mask.any()]
    if not shown:
        raise InputError("no training slice with a label", where=slices, fix="give the site labelled training patients")
    masks = np.stack([fitted[index] for index in shown]).astype(np.uint8)
    return SitePairs(images.subset(shown), masks, labels, len(fitted) - len(shown))


def _flat_masks(images: ImageSet, dataset: Path, labels: dict[str, int]) -> Iterator[np.ndarray]:
    """2D: the label file, cropped with its image to the image's non-zero part."""
    for entry in images.entries:
        files = sorted((dataset / "imagesTr").glob(f"{entry.case}_[0-9][0-9][0-9][0-9].png"))
        box = nonzero_box(np.concatenate([read_image(file).array for file in files]))
        yield read_mask(dataset / "labelsTr" / f"{entry.case}.png", None, labels)[box]


def _volume_masks(images: ImageSet, planned: Path) -> Iterator[np.ndarray]:
    """3D: nnU-Net's segmentation beside the preprocessed case; each case is read once."""
    from nnunetv2_mod import read_preprocessed

    def case_of(entry: ImageEntry) -> str:
        return entry.case

    for case, entries in groupby(images.entries, case_of):
        volume = read_preprocessed(planned, case).labels
        yield from (volume[entry.slice_index] for entry in entries)
