"""A site's images as its generator sees them, also those of the outer fold's test patients, whom no stage slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import read_json
from common.image_set import ImageEntry, ImageSet, load_image_set
from common.plan import load_plan
from dataset.images import read_image
from dataset.slices import crop_to_nonzero, encode, fit_to_patch
from nnunetv2_mod.raw_dataset import raw_dataset

FOLDERS = {"train": "imagesTr", "val": "imagesTr", "test": "imagesTs"}


def images_of_split(fold: Path, site: str, split: str) -> ImageSet:
    """The 2D images of a site's ``train``, ``val`` or ``test`` patients, at the size, scale and window of its slices.

    Args:
        fold: ``runs/<exp_name>/fold_<k>`` in which the site's ``prepare``, ``plan`` and ``slices`` are done.

    Raises:
        InputError: volumes, or stages that are not done.
    """
    slices = load_image_set(fold / "slices" / site)
    if slices.info.volumetric:
        fix = "compare generators of 2D images"
        raise InputError(
            "this is a site of volumes, whose test cases nobody has sliced", where=fold / "slices" / site, fix=fix
        )
    dataset = raw_dataset(fold / "prepare" / site)
    patients, cases = (read_json(dataset.parent / name) for name in ("patients.json", "splits.json"))
    patch_size_px = load_plan(fold / "plan" / site / "plans.json").patch_size_px
    images = np.empty((len(cases[split]), *slices.images.shape[1:]), slices.images.dtype)
    for image, case in zip(images, cases[split], strict=True):
        files = sorted((dataset / FOLDERS[split]).glob(f"{case}_[0-9][0-9][0-9][0-9].png"))
        pixels = crop_to_nonzero(np.concatenate([read_image(file).array for file in files]))
        image[...] = encode(fit_to_patch(pixels, patch_size_px, slices.info.scale), slices.info.intensity, image.dtype)
    entries = tuple(ImageEntry(case, case, patient=patients[case], split=split) for case in cases[split])
    return ImageSet(images, entries, slices.info)
