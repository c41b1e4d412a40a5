"""Synthetic images as cases: their intensities, spacing and stacks, and which of them validate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.image_set import ImageSet
from common.plan import Plan
from common.progress import Progress
from dataset.slices import decode, restore_scale
from sharing import SyntheticCase

UNUSED_SPACING = 999.0  # nnU-Net's through-plane spacing of 2D images
Normalisation = tuple[tuple[float, float], ...]


def shared_images(images: ImageSet) -> np.ndarray:
    """The images (n, channels, height, width) as they are shared: intensities decoded, the site's scale undone."""
    return restore_scale(decode(images.images, images.info.intensity), images.info.scale)


def what_images_are(
    kept: ImageSet, hounsfield: Normalisation, dataset_json: Mapping[str, Any], min_slice_distance_mm: float
) -> dict[str, Any]:
    """Channels, labels, spacing and intensities of synthetic images, as fields of ``PackageFacts``.

    The spacing is that of the shared pixels, on which the site's scale is undone.
    """
    through_plane_mm = min_slice_distance_mm if kept.info.volumetric else UNUSED_SPACING
    return {
        "channel_names": tuple(dataset_json["channel_names"][str(i)] for i in range(kept.images.shape[1])),
        "labels": {name: value for name, value in dataset_json["labels"].items() if value != 0},
        "spacing_mm": (through_plane_mm, *(spacing * kept.info.scale for spacing in kept.info.spacing_mm)),
        "intensity_space": "normalised" if kept.info.volumetric and not hounsfield else "source",
    }


def ct_normalisation(plan: Plan) -> Normalisation:
    """Mean and deviation by which nnU-Net normalised CT, by channel; empty for other images."""
    if any(scheme != "CTNormalization" for scheme in plan.normalization_schemes):
        return ()
    return tuple((channel["mean"], channel["std"]) for channel in plan.intensity)


def synthetic_cases(
    site: str, kept: ImageSet, labels: np.ndarray, hounsfield: Normalisation, stack_size: int, progress: Progress
) -> Iterator[SyntheticCase]:
    """One case per image, of volumes stacks of slices; the last one is as short as it must be (D16)."""
    size = stack_size if kept.info.volumetric else 1
    n_cases = -(-len(kept) // size)
    width = len(str(n_cases))
    for number in range(n_cases):
        indices = list(range(number * size, min((number + 1) * size, len(kept))))
        images = shared_images(kept.subset(indices))
        if kept.info.volumetric:
            images = _to_source_units(images, hounsfield).astype(np.float32)
        else:
            images = np.round(images).astype(kept.images.dtype)
        yield SyntheticCase(f"{site}_syn_{number:0{width}d}", np.moveaxis(images, 0, 1), np.asarray(labels[indices]))
        progress(number + 1, n_cases, "cases")


def _to_source_units(images: np.ndarray, hounsfield: Normalisation) -> np.ndarray:
    """Undo nnU-Net's CT normalisation, so that Hounsfield units are shared, negative ones included (D6)."""
    if not hounsfield:
        return images
    mean, std = np.array(hounsfield).T[:, :, None, None]
    return np.asarray(images * std + mean)


def split_synthetic(
    cases_of_site: Mapping[str, tuple[Sequence[str], int]], settings: Mapping[str, Any], seed: int
) -> dict[str, list[str]]:
    """Cases that train and that validate, site by site: a share of each site's, and at most so many images.

    A site's only case trains. Where no site has more than one, one of them validates; a single case does both.

    Args:
        cases_of_site: names of the cases, and how many images they hold together.
    """
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for names, n_images in cases_of_site.values():
        images_per_case = max(1, n_images // len(names))
        most = min(len(names) - 1, max(1, settings["max_validation_images"] // images_per_case))
        n_validation = min(most, max(1, int(settings["validation_fraction"] * len(names))))
        order = np.random.default_rng(seed).permutation(len(names))
        splits["val"] += [names[i] for i in order[:n_validation]]
        splits["train"] += [names[i] for i in order[n_validation:]]
    if not splits["val"]:
        splits["val"] = [splits["train"].pop()] if len(splits["train"]) > 1 else list(splits["train"])
    return splits
