"""Label maps of a site's slices, brought to the slices' geometry."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import read_json
from common.image_set import ImageSet
from dataset.images import check_label_ids, read_image, read_mask
from dataset.slices import fit_labels_to_patch, nonzero_box
from nnunetv2_mod.raw_dataset import raw_dataset


def label_ids(prepared: Path) -> dict[str, int]:
    """Ids by name, without the background, of the dataset under ``prepared``.

    Raises:
        InputError: they are not 1, 2, 3, ...
    """
    path = raw_dataset(prepared) / "dataset.json"
    labels = {name: value for name, value in read_json(path)["labels"].items() if value != 0}
    check_label_ids(labels.values(), where=path, fix="number the labels so")
    return labels


def fitted_label_maps(images: ImageSet, prepared: Path, planned: Path | None = None) -> np.ndarray:
    """Label ids (n, height, width) uint8 of slices, in their order, fitted exactly as they were.

    Args:
        images: the slices, or some of them.
        prepared: folder with ``raw/DatasetXXX``, from which the labels of 2D images are read.
        planned: folder with nnU-Net's preprocessed cases, from which those of volumes are read.

    Raises:
        InputError: label ids that are not 1, 2, 3, ..., or volumes without ``planned``.
    """
    labels = label_ids(prepared)
    if not images.info.volumetric:
        maps = _flat_masks(images, raw_dataset(prepared), labels)
    elif planned is not None:
        maps = _volume_masks(images, planned)
    else:
        raise InputError("volumes need their plan", where=prepared, fix="pass the site's plan folder")
    size_px = (images.images.shape[-2], images.images.shape[-1])
    fitted = np.zeros((len(images), *size_px), np.uint8)
    for index, label_map in enumerate(maps):
        fitted[index] = fit_labels_to_patch(label_map, size_px, images.info.scale)
    return fitted


def _flat_masks(images: ImageSet, dataset: Path, labels: dict[str, int]) -> Iterator[np.ndarray]:
    """2D: the label file, cropped with its image to the image's non-zero part."""
    for entry in images.entries:
        files = sorted((dataset / "imagesTr").glob(f"{entry.case}_[0-9][0-9][0-9][0-9].png"))
        box = nonzero_box(np.concatenate([read_image(file).array for file in files]))
        yield read_mask(dataset / "labelsTr" / f"{entry.case}.png", None, labels)[box]


def _volume_masks(images: ImageSet, planned: Path) -> Iterator[np.ndarray]:
    """3D: nnU-Net's segmentation beside the preprocessed case; each case is read once."""
    from nnunetv2_mod import read_preprocessed

    for case, entries in groupby(images.entries, lambda entry: entry.case):
        volume = read_preprocessed(planned, case).labels
        yield from (volume[entry.slice_index] for entry in entries)
