"""The layout of an nnU-Net raw dataset: names of its folders and files, ``dataset.json``, one case's files.

This is the only place that knows it; what a picture's or volume's bytes are is the caller's own ``write``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, LABELS = "imagesTr", "labelsTr"  # of training cases
TEST_IMAGES, TEST_LABELS = "imagesTs", "labelsTs"
DATASET_JSON = "dataset.json"
PNG, NIFTI = ".png", ".nii.gz"


def raw_dataset(prepared: Path) -> Path:
    """The one nnU-Net raw dataset in a prepare stage's folder."""
    (dataset,) = sorted((prepared / "raw").glob("Dataset*"))
    return dataset


def image_name(case: str, channel: int, ending: str) -> str:
    """The file of one channel of a case."""
    return f"{case}_{channel:04d}{ending}"


def dataset_json(
    channel_names: Sequence[str],
    labels: Mapping[str, Any],
    n_training: int,
    ending: str,
    regions_class_order: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The content of ``dataset.json``.

    Args:
        labels: name to id, or to a list of ids for a region; the background is added.
        n_training: number of training cases.
    """
    described = {
        "channel_names": {str(index): name for index, name in enumerate(channel_names)},
        "labels": {"background": 0, **labels},
        "numTraining": n_training,
        "file_ending": ending,
    }
    if regions_class_order is not None:
        described["regions_class_order"] = list(regions_class_order)
    return described


def write_case(
    dataset: Path,
    name: str,
    image: np.ndarray,
    labels: np.ndarray | None,
    ending: str,
    write: Callable[[Path, np.ndarray], None],
    is_rgb: bool = False,
    is_test: bool = False,
) -> list[Path]:
    """Write one case with ``write(path, array)``, the image's files first.

    Args:
        image: (channels, *size); one file a channel, or, if ``is_rgb``, one PNG (height, width, 3).
        labels: (*size) ids; None: the case has none.

    Returns:
        The files.
    """
    images, label_maps = (TEST_IMAGES, TEST_LABELS) if is_test else (IMAGES, LABELS)
    arrays = [np.moveaxis(image, 0, -1)] if is_rgb else list(image)
    files = {dataset / images / image_name(name, channel, ending): array for channel, array in enumerate(arrays)}
    if labels is not None:
        files[dataset / label_maps / f"{name}{ending}"] = labels
    for path, array in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, array)
    return list(files)
