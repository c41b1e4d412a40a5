"""How a sample is written: its geometry, and how a network's numbers become intensities of the source's files.

An ``OutputSpec`` is stored in the checkpoint, so that whoever gets the checkpoint can write samples without the
training images. One that is read from a file is therefore checked like a stranger's. Samples form a raw dataset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError
from common.files import atomic_path, write_json
from common.settings import from_dict
from nnunetv2_mod.raw_dataset import DATASET_JSON, NIFTI, PNG, dataset_json, write_case

if TYPE_CHECKING:
    import SimpleITK

SOURCE, NORMALISED = "source", "normalised"
NATURAL_ENDINGS = (".png", ".bmp", ".tif", ".tiff")  # of images without geometry, where they are 2D
VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
MAX_CHANNELS, MAX_LABEL = 64, 255


@dataclass(frozen=True)
class IntensityMap:
    """How nnU-Net's normalised values become those of the source: ``value * scale + offset``, within the bounds.

    ``space`` is ``source``, or ``normalised`` where nothing is known of the source's units.
    """

    space: str = NORMALISED
    scale: float = 1.0
    offset: float = 0.0
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class OutputChannel:
    """One channel; ``low`` and ``high``, in normalised units, are the -1 and 1 of what the network sees."""

    name: str
    low: float
    high: float
    restored: IntensityMap


@dataclass(frozen=True)
class OutputSpec:
    """Of a training's images.

    ``spacing_mm`` is that of the array's axes (Z, Y, X), the coarsest first; ``transpose_backward`` leads to the axes
    of the files. ``file_axes``: 2 where the files are images, also in NIfTI. ``rgb``: three channels are one file.
    ``labels`` and ``regions_class_order`` are nnU-Net's.
    """

    channels: tuple[OutputChannel, ...]
    spacing_mm: tuple[float, float, float]
    transpose_backward: tuple[int, int, int]
    file_ending: str
    file_axes: int
    dtype: str
    rgb: bool
    labels: Mapping[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None


def output_spec_from(values: Mapping[str, Any], where: str = "facts") -> OutputSpec:
    """The spec that a checkpoint holds, checked.

    Raises:
        InputError: keys, types or values no training writes.
    """
    try:
        spec = from_dict(OutputSpec, values)
    except TypeError as error:
        raise InputError(str(error), where=where, fix="use the checkpoint of a training on nnU-Net's cases") from error
    for name, valid in _checks(spec).items():
        if not valid:
            raise InputError(
                f"{name}={getattr(spec, name)!r} cannot be right",
                where=where,
                fix="train again, or copy the file again",
            )
    return spec


def _checks(spec: OutputSpec) -> dict[str, bool]:
    """Field: whether a training could have written it."""
    ids = [value if isinstance(value, tuple) else (value,) for value in spec.labels.values()]
    return {
        "channels": 0 < len(spec.channels) <= MAX_CHANNELS and all(map(_valid_channel, spec.channels)),
        "spacing_mm": all(math.isfinite(mm) and mm > 0 for mm in spec.spacing_mm),
        "transpose_backward": sorted(spec.transpose_backward) == [0, 1, 2],
        "file_ending": spec.file_ending in (*NATURAL_ENDINGS, *VOLUME_ENDINGS),
        "file_axes": spec.file_axes in (2, 3),
        "dtype": spec.dtype in DTYPES,
        "rgb": not spec.rgb or len(spec.channels) == 3,
        "labels": all(0 <= number <= MAX_LABEL for region in ids for number in region),
    }


def _valid_channel(channel: OutputChannel) -> bool:
    restored = channel.restored
    bounds = [bound for bound in (restored.lower, restored.upper) if bound is not None]
    numbers = (channel.low, channel.high, restored.scale, restored.offset, *bounds)
    valid = all(map(math.isfinite, numbers)) and bounds == sorted(bounds)
    return valid and channel.low < channel.high and restored.scale > 0 and restored.space in (SOURCE, NORMALISED)


def to_network(values: np.ndarray, channels: tuple[OutputChannel, ...]) -> np.ndarray:
    """Normalised values (channels, ...) to float32 in [-1, 1]; what lies beyond a channel's window is clipped."""
    low, high = _ends(channels, values.ndim)
    shown = values.astype(np.float32) - low.astype(np.float32)
    shown *= (2 / (high - low)).astype(np.float32)
    shown -= 1
    return np.clip(shown, -1, 1, out=shown)


def to_normalised(shown: np.ndarray, channels: tuple[OutputChannel, ...]) -> np.ndarray:
    """The way back: (channels, ...) in [-1, 1], clipped there, to float64 normalised values."""
    low, high = _ends(channels, shown.ndim)
    return np.asarray(low + (np.clip(shown.astype(np.float64), -1, 1) + 1) / 2 * (high - low))


def _ends(channels: tuple[OutputChannel, ...], n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(channels), *[1] * (n_axes - 1))
    low, high = np.array([[channel.low, channel.high] for channel in channels]).T
    return low.reshape(shape), high.reshape(shape)


def write_sample(
    folder: Path, name: str, array: np.ndarray, spec: OutputSpec, labels: np.ndarray | None = None
) -> list[Path]:
    """Write one sample into ``folder``, a raw dataset of nnU-Net.

    Args:
        name: of the case.
        array: (channels, *size) in [-1, 1]; three axes of size for a volume, two for an image or a slice.
        labels: (*size) ids, 0 for background.

    Returns:
        The files: one a channel (of RGB images one), then that of the labels.
    """
    if len(array) != len(spec.channels) or array.ndim not in (3, 4):
        raise ValueError(f"an array of shape {array.shape} does not fit {len(spec.channels)} channels")
    ending = sample_ending(spec, array.ndim - 1)

    def write(path: Path, values: np.ndarray) -> None:
        import SimpleITK

        if ending == PNG:
            image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values), isVector=values.ndim == 3)
        else:
            image = _volume(values, spec)
        with atomic_path(path) as temporary:  # whose name ends as the target's does: the ending decides the format
            SimpleITK.WriteImage(image, str(temporary), True)

    ids = None if labels is None else labels.astype(np.uint8)
    is_rgb = spec.rgb and ending == PNG
    return write_case(folder, name, source_intensities(array, spec), ids, ending, write, is_rgb=is_rgb)


def write_dataset_json(folder: Path, spec: OutputSpec, n_axes: int, n_cases: int) -> None:
    """Describe the dataset in ``folder`` as nnU-Net expects; ``n_axes`` of a sample: 2 or 3."""
    names = [channel.name for channel in spec.channels]
    labels = {name: list(ids) if isinstance(ids, tuple) else ids for name, ids in spec.labels.items()}
    described = dataset_json(names, labels, n_cases, sample_ending(spec, n_axes), spec.regions_class_order)
    write_json(folder / DATASET_JSON, described)


def sample_ending(spec: OutputSpec, n_axes: int) -> str:
    """``.png`` for samples of images without geometry, ``.nii.gz`` for all others."""
    return PNG if n_axes == 2 and spec.file_ending in NATURAL_ENDINGS else NIFTI


def source_intensities(array: np.ndarray, spec: OutputSpec) -> np.ndarray:
    """(channels, *size) in [-1, 1] to the source's units and type, or to normalised float32 where they are unknown.

    Images that become PNG files are uint8 or uint16 in any case.
    """
    natural = sample_ending(spec, array.ndim - 1) == PNG
    dtype = np.dtype(spec.dtype if not natural or spec.dtype in ("uint8", "uint16") else "uint8")
    known = all(channel.restored.space == SOURCE for channel in spec.channels)
    if not known and not natural:
        dtype = np.dtype(np.float32)
    channels = []
    for shown, normalised, channel in zip(array, to_normalised(array, spec.channels), spec.channels, strict=True):
        restored = channel.restored
        if natural and restored.space != SOURCE:
            values = (np.clip(shown.astype(np.float64), -1, 1) + 1) / 2 * np.iinfo(dtype).max
        else:
            lower = -np.inf if restored.lower is None else restored.lower
            upper = np.inf if restored.upper is None else restored.upper
            values = np.clip(normalised * restored.scale + restored.offset, lower, upper)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.rint(values).clip(limits.min, limits.max)
        channels.append(values.astype(dtype))
    return np.stack(channels)


def _volume(array: np.ndarray, spec: OutputSpec) -> SimpleITK.Image:
    """``array``, (Z, Y, X) or a slice (Y, X) in the plan's order of axes, in the order of the files."""
    import SimpleITK

    volume = array[None] if array.ndim == 2 else array
    spacing_mm = [spec.spacing_mm[axis] for axis in spec.transpose_backward]
    volume = np.ascontiguousarray(volume.transpose(spec.transpose_backward))
    if spec.file_axes == 2 and len(volume) == 1:
        volume, spacing_mm = volume[0], spacing_mm[1:]
    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing(spacing_mm[::-1])  # x first, where array axes begin with z
    return image
