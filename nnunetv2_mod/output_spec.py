"""What a sample is written with: geometry, and how the numbers of a network become intensities of the source's files.

It is stored in the checkpoint, so whoever gets the checkpoint can write samples without the training images. A stored
one is therefore checked as a stranger's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import InputError
from common.settings import from_dict

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
            raise InputError(f"{name}={getattr(spec, name)!r}", where=where, fix="train again, or copy the file again")
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
