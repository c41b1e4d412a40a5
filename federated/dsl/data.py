"""A site's pairs of image and mask for DSL: the generator's slices, and their labels brought to the same geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.image_set import ImageSet, load_image_set
from dataset.label_maps import fitted_label_maps, label_ids


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
    masks = fitted_label_maps(images, prepared, planned)
    shown = np.flatnonzero(masks.any(axis=(1, 2)))
    if not len(shown):
        raise InputError(
            "there is no training slice with a label", where=slices, fix="give the site labelled training patients"
        )
    return SitePairs(images.subset(shown), masks[shown], label_ids(prepared), len(masks) - len(shown))
