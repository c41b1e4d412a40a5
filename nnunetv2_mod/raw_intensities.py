"""What the raw training images are like: statistics as nnU-Net's normalisation computes them, and the kind of file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError
from nnunetv2_mod.output_spec import DTYPES

if TYPE_CHECKING:
    from common.plan import Plan
    from nnunetv2_mod.nnunet_folder import NnunetDataset

log = logging.getLogger(__name__)

N_RAW_CASES = 64  # at most, evenly spaced: the median hardly changes with more, and a volume takes a second to read


@dataclass(frozen=True)
class RawImages:
    """What the raw training images are like; statistics are medians over them, (channels,) each, in file units."""

    dtype: str
    file_axes: int
    rgb: bool  # all channels are in one file
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    negative: np.ndarray  # whether any has values below 0


def read_raw_images(dataset: NnunetDataset, plan: Plan, cases: Sequence[str]) -> RawImages | None:
    """Statistics of the raw images of ``cases``; None where they are not there.

    Raises:
        InputError: an unreadable image, or one with other channels than the plan.
    """
    there = [(case, files) for case in cases if (files := raw_files(dataset, case))]
    if not there:
        return None
    chosen = np.unique(np.linspace(0, len(there) - 1, N_RAW_CASES).round().astype(int))
    n_channels = len(plan.normalization_schemes)
    log.info("%s: intensities of %d raw cases", dataset.name, len(chosen))
    statistics = []
    for case, files in (there[i] for i in chosen):
        image = _read_channels(files)
        if len(image) != n_channels:
            problem = f"case {case} has {len(image)} channels, the plan {n_channels}"
            raise InputError(problem, where=files[0], fix="plan and preprocess the dataset again")
        statistics.append(_statistics(image, plan.use_mask_for_norm))
    first = _read_file(there[0][1][0])
    mean, std, low, high = np.median(statistics, axis=0)
    negative = np.min(statistics, axis=0)[2] < 0
    dtype = first[0].dtype.name if first[0].dtype.name in DTYPES else "float32"
    rgb = len(there[0][1]) == 1 and n_channels == 3 and first[1] == 2
    return RawImages(dtype, first[1], rgb, mean, std, low, high, negative)


def raw_files(dataset: NnunetDataset, case: str) -> list[Path]:
    """The image files of ``case``, a channel each or all in one; empty where they are not there."""
    if dataset.raw is None:
        return []
    listed: dict[str, Any] = dataset.dataset_json.get("dataset") or {}
    if case in listed:
        files = [dataset.raw / image for image in listed[case]["images"]]
    else:
        names = (f"{case}_{channel:04d}{dataset.dataset_json['file_ending']}" for channel in range(10_000))
        files = []
        for name in names:
            if not (dataset.raw / "imagesTr" / name).is_file():
                break
            files.append(dataset.raw / "imagesTr" / name)
    return files if all(file.is_file() for file in files) else []


def _read_channels(files: Sequence[Path]) -> np.ndarray:
    """(channels, Z, Y, X) of one case in its files' order of axes."""
    arrays = [_read_file(file)[0] for file in files]
    if any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        raise InputError("channels of different sizes", where=files[0], fix="preprocess the dataset again")
    return np.concatenate(arrays)


def _read_file(path: Path) -> tuple[np.ndarray, int]:
    """(channels, Z, Y, X) and the number of axes the file has."""
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError("not readable as an image", where=path, fix="copy the raw dataset again") from error
    array, n_axes = SimpleITK.GetArrayFromImage(image), image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif n_axes < 4:  # a 4D file holds its channels along its last axis, the first of the array
        array = array[None]
    return (array[:, None], 2) if array.ndim == 3 else (array, 3)


def _statistics(image: np.ndarray, use_mask: Sequence[bool]) -> np.ndarray:
    """Mean, deviation, minimum and maximum of the voxels that nnU-Net normalises with, (4, channels)."""
    from scipy.ndimage import binary_fill_holes, find_objects

    inside = binary_fill_holes((image != 0).any(axis=0))
    boxes = find_objects(inside.astype(np.uint8))
    box = boxes[0] if boxes else (slice(None),) * inside.ndim
    columns = []
    for channel, masked in zip(image, use_mask, strict=True):
        cropped = channel[box].astype(np.float64)
        values = cropped[inside[box]] if masked and boxes else cropped
        columns.append([values.mean(), values.std(), cropped.min(), cropped.max()])
    return np.array(columns).T
