"""How a training's samples become files of the source's kind: from the plan, the raw images and dataset.json.

CT is normalised by statistics of the dataset, which the plan holds: the way back is exact within the clipping. A
z-score has its mean and deviation from each image, so generated images get those of the median training image; they
are computed from the raw files.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from common.errors import InputError
from common.volumes import channels_of, read_itk
from nnunetv2_mod.output_spec import (
    DTYPES,
    MAX_LABEL,
    NATURAL_ENDINGS,
    SOURCE,
    VOLUME_ENDINGS,
    IntensityMap,
    OutputChannel,
    OutputSpec,
)
from nnunetv2_mod.raw_dataset import IMAGES, image_name

if TYPE_CHECKING:
    from common.plan import Plan
    from nnunetv2_mod.nnunet_folder import NnunetDataset

log = logging.getLogger(__name__)

SMALLEST_STD = 1e-8  # nnU-Net's, for constant images
RGB_NAMES = ({"r", "g", "b"}, {"red", "green", "blue"})
CT, Z_SCORE, NONE, RESCALED, RGB = (f"{name}Normalization" for name in ("CT", "ZScore", "No", "RescaleTo01", "RGBTo01"))
UNKNOWN_SPACING_MM = 1.0
T = TypeVar("T")
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


@dataclass(frozen=True)
class Source:
    """How samples become files of the source's kind."""

    restored: tuple[IntensityMap, ...]  # one a channel
    dtype: str
    file_axes: int
    rgb: bool


def check_dataset_json(dataset: NnunetDataset, n_channels: int) -> None:
    """InputError unless it names the channels, labels and file ending as nnU-Net v2 does."""
    described, where = dataset.dataset_json, dataset.preprocessed / "dataset.json"
    names, labels = described.get("channel_names"), described.get("labels")
    checks = [
        ("channel_names", isinstance(names, dict) and {str(i) for i in range(n_channels)} <= set(names)),
        ("labels", isinstance(labels, dict) and all(map(_is_label, labels.values()))),
        ("file_ending", described.get("file_ending") in (*NATURAL_ENDINGS, *VOLUME_ENDINGS)),
    ]
    for key, valid in checks:
        if not valid:
            problem = f"{key} is {described.get(key)!r} for images of {n_channels} channels"
            raise InputError(problem, where=where, fix="write dataset.json as nnU-Net v2 asks, then preprocess again")


def _is_label(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return all(type(number) is int and 0 <= number <= MAX_LABEL for number in ids)


def source_of(dataset: NnunetDataset, plan: Plan, cases: Sequence[str]) -> Source:
    """The way back to the source's values and files, from the plan and the raw images of the training ``cases``.

    Without raw images it is as near as the plan leads, with a warning where that is not all the way.

    Raises:
        InputError: raw images that are unreadable, or with other channels than the plan.
    """
    n_channels = len(plan.normalization_schemes)
    ending = str(dataset.dataset_json["file_ending"])
    raw = read_raw_images(dataset, plan, cases)
    restored = tuple(intensity_map_of(plan, channel, raw, ending) for channel in range(n_channels))
    unknown = [channel for channel, one in enumerate(restored) if one.space != SOURCE]
    if unknown:
        log.warning(
            "channels %s of %s are generated in normalised values: the raw images that %s would need are not there",
            unknown,
            dataset.name,
            plan.normalization_schemes[unknown[0]],
        )
    if raw is not None:
        return Source(restored, raw.dtype, raw.file_axes, raw.rgb)
    natural = ending in NATURAL_ENDINGS
    names = {str(name).casefold() for name in dataset.dataset_json["channel_names"].values()}
    rgb = natural and n_channels == 3 and (set(plan.normalization_schemes) == {RGB} or names in RGB_NAMES)
    return Source(restored, "uint8" if natural else "float32", 2 if natural else 3, rgb)


def intensity_map_of(plan: Plan, channel: int, raw: RawImages | None, ending: str) -> IntensityMap:
    """How ``channel`` is restored; ``raw`` is None where there are no raw images."""
    scheme, intensity = plan.normalization_schemes[channel], plan.intensity[channel]
    bounds = IntensityMap()
    if raw is not None and not raw.negative[channel]:
        bounds = IntensityMap(lower=0.0)
    if scheme == CT and intensity:
        scale = max(float(intensity["std"]), SMALLEST_STD)
        lower, upper = float(intensity["percentile_00_5"]), float(intensity["percentile_99_5"])
        return IntensityMap(SOURCE, scale, float(intensity["mean"]), lower, upper)
    if scheme == NONE:
        return replace(bounds, space=SOURCE)
    if scheme == RGB or (scheme == RESCALED and raw is None and ending in NATURAL_ENDINGS):
        return IntensityMap(SOURCE, 255.0, 0.0, 0.0, 255.0)
    if raw is not None and scheme == Z_SCORE:
        scale = max(float(raw.std[channel]), SMALLEST_STD)
        return replace(bounds, space=SOURCE, scale=scale, offset=float(raw.mean[channel]))
    if raw is not None and scheme == RESCALED:
        low, high = float(raw.low[channel]), float(raw.high[channel])
        return replace(bounds, space=SOURCE, scale=max(high - low, SMALLEST_STD), offset=low)
    return IntensityMap()


def output_spec_of(
    dataset: NnunetDataset,
    plan: Plan,
    source: Source,
    windows: Sequence[tuple[float, float]],
    channels: Sequence[int],
) -> OutputSpec:
    """How samples are written.

    Args:
        windows: the normalised values that become -1 and 1, one for each of ``channels``.
        channels: those of the files that are generated.
    """
    described = dataset.dataset_json
    names, labels = described["channel_names"], described["labels"]
    order = described.get("regions_class_order")
    return OutputSpec(
        channels=tuple(
            OutputChannel(str(names[str(channel)]), low, high, source.restored[channel])
            for channel, (low, high) in zip(channels, windows, strict=True)
        ),
        spacing_mm=_spacing_of_axes(dataset, plan),
        transpose_backward=_three(int(axis) for axis in plan.transpose_backward),
        file_ending=str(described["file_ending"]),
        file_axes=source.file_axes,
        dtype=source.dtype,
        rgb=source.rgb and len(channels) == 3,
        labels={str(name): tuple(ids) if isinstance(ids, list) else int(ids) for name, ids in labels.items()},
        regions_class_order=None if order is None else tuple(order),
    )


def _spacing_of_axes(dataset: NnunetDataset, plan: Plan) -> tuple[float, float, float]:
    """(Z, Y, X) in mm; a 2D plan does not say how far apart slices are, the median of the dataset does."""
    spacing = [float(mm) for mm in plan.spacing_mm]
    if len(spacing) == 2:
        median = dataset.plans.get("original_median_spacing_after_transp", [UNKNOWN_SPACING_MM])
        spacing = [float(median[0]), *spacing]
    return _three(spacing)


def _three(values: Iterable[T]) -> tuple[T, T, T]:
    first, second, third = values
    return first, second, third


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
        folder, ending = dataset.raw / IMAGES, dataset.dataset_json["file_ending"]
        channels = (folder / image_name(case, channel, ending) for channel in itertools.count())
        files = list(itertools.takewhile(Path.is_file, channels))
    return files if all(file.is_file() for file in files) else []


def _read_channels(files: Sequence[Path]) -> np.ndarray:
    """(channels, Z, Y, X) of one case in its files' order of axes."""
    arrays = [_read_file(file)[0] for file in files]
    if any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        raise InputError("channels of different sizes", where=files[0], fix="preprocess the dataset again")
    return np.concatenate(arrays)


def _read_file(path: Path) -> tuple[np.ndarray, int]:
    """(channels, Z, Y, X) and the number of axes the file has."""
    array = channels_of(read_itk(path, "the file is not readable as an image", "copy the raw dataset again"))
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
