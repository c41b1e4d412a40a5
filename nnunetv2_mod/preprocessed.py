"""Read what nnU-Net preprocessed: normalised arrays at the plan's spacing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

OUTSIDE = -1  # nnU-Net's mark, in the label map, of what lies outside the non-zero region


@dataclass(frozen=True)
class PreprocessedCase:
    """``array``: (channels, slices, height, width), normalised and transposed.

    ``outside`` and ``labels``, ids from 0, are (slices, height, width).
    """

    array: np.ndarray
    outside: np.ndarray
    labels: np.ndarray
    file_spacing_mm: tuple[float, ...]  # of the source file, before the transposition


def read_preprocessed(planned: Path, case: str) -> PreprocessedCase:
    """One case of a planned dataset, transposed as planned: its first spatial axis is the through-plane one."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    (folder,) = sorted((planned / "preprocessed").glob("Dataset*/*_2d"))
    data, labels, _, properties = infer_dataset_class(str(folder))(str(folder), [case]).load_case(case)
    spacing = tuple(float(value) for value in properties["spacing"])
    stored = np.asarray(labels[0])
    return PreprocessedCase(np.asarray(data[:]), stored == OUTSIDE, np.maximum(stored, 0).astype(np.uint8), spacing)
