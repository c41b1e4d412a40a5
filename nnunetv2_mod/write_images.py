"""Samples as files of the source's kind: real intensities, spacing and axes, laid out as an nnU-Net raw dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.files import atomic_path, write_json
from nnunetv2_mod.output_spec import NATURAL_ENDINGS, SOURCE, OutputSpec, to_normalised

if TYPE_CHECKING:
    import SimpleITK

IMAGES, LABELS = "imagesTr", "labelsTr"


def write_sample(
    folder: Path, name: str, array: np.ndarray, spec: OutputSpec, labels: np.ndarray | None = None
) -> list[Path]:
    """Write one sample into ``folder``, a raw dataset of nnU-Net.

    Args:
        name: of the case.
        array: (channels, *size) in [-1, 1]; three axes of size for a volume, two for an image or a slice.
        labels: (*size) ids, 0 for background.

    Returns:
        The files: one a channel (``<name>_0000...``; of RGB images one), then that of the labels.
    """
    if len(array) != len(spec.channels) or array.ndim not in (3, 4):
        raise ValueError(f"an array of shape {array.shape} for {len(spec.channels)} channels")
    ending = file_ending(spec, array.ndim - 1)
    values = source_intensities(array, spec)
    files = {}
    if spec.rgb and ending == ".png":
        files[folder / IMAGES / f"{name}_0000{ending}"] = _picture(np.moveaxis(values, 0, -1), is_vector=True)
    else:
        for channel, image in enumerate(values):
            path = folder / IMAGES / f"{name}_{channel:04d}{ending}"
            files[path] = _picture(image) if ending == ".png" else _volume(image, spec)
    if labels is not None:
        ids = labels.astype(np.uint8)
        files[folder / LABELS / f"{name}{ending}"] = _picture(ids) if ending == ".png" else _volume(ids, spec)
    for path, image in files.items():
        _write(path, image)
    return list(files)


def write_dataset_json(folder: Path, spec: OutputSpec, n_axes: int, n_cases: int) -> None:
    """Describe the dataset in ``folder`` as nnU-Net expects; ``n_axes`` of a sample: 2 or 3."""
    described = {
        "channel_names": {str(number): channel.name for number, channel in enumerate(spec.channels)},
        "labels": {name: list(ids) if isinstance(ids, tuple) else ids for name, ids in spec.labels.items()},
        "numTraining": n_cases,
        "file_ending": file_ending(spec, n_axes),
    }
    if spec.regions_class_order is not None:
        described["regions_class_order"] = list(spec.regions_class_order)
    write_json(folder / "dataset.json", described)


def file_ending(spec: OutputSpec, n_axes: int) -> str:
    """``.png`` for samples of images without geometry, ``.nii.gz`` for all others."""
    return ".png" if n_axes == 2 and spec.file_ending in NATURAL_ENDINGS else ".nii.gz"


def source_intensities(array: np.ndarray, spec: OutputSpec) -> np.ndarray:
    """(channels, *size) in [-1, 1] to the source's units and type, or to normalised float32 where they are unknown.

    Images that become PNG files are uint8 or uint16 in any case.
    """
    natural = file_ending(spec, array.ndim - 1) == ".png"
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


def _picture(array: np.ndarray, *, is_vector: bool = False) -> SimpleITK.Image:
    import SimpleITK

    return SimpleITK.GetImageFromArray(np.ascontiguousarray(array), isVector=is_vector)


def _write(path: Path, image: SimpleITK.Image) -> None:
    import SimpleITK

    with atomic_path(path) as temporary:  # whose name ends as the target's does: the ending decides the format
        SimpleITK.WriteImage(image, str(temporary), True)
