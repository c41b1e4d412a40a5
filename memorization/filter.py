"""Drop synthetic images that are at least as close to a training image as the threshold says."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from common.files import atomic_path
from memorization.calibration import MemorizationConfig
from memorization.index import nearest


@dataclass(frozen=True)
class FilterResult:
    """``kept`` (m,); ``distances``, ``neighbours`` and ``mirrored`` (m, k), nearest first; ``features`` (m, d).

    ``neighbours`` counts training images; ``mirrored`` says that the near one was their mirror image. ``features`` are
    those of the samples.
    """

    kept: np.ndarray
    distances: np.ndarray
    neighbours: np.ndarray
    mirrored: np.ndarray
    features: np.ndarray


def filter_samples(
    reference_features: np.ndarray,
    sample_features: np.ndarray,
    threshold_l2: float,
    config: MemorizationConfig,
    mirrored_features: np.ndarray | None = None,
) -> FilterResult:
    """Compare every sample with every training image (and its mirror image where given).

    A sample whose distance is not a number is dropped: what cannot be compared does not leave.
    """
    index = reference_features
    if mirrored_features is not None:
        index = np.concatenate([reference_features, mirrored_features])
    distances, positions = nearest(index, sample_features)
    closest = distances[:, 0]
    kept = closest > threshold_l2 if config.drop_ties else closest >= threshold_l2
    n_references = len(reference_features)
    return FilterResult(kept, distances, positions % n_references, positions >= n_references, sample_features)


def joined(first: FilterResult, second: FilterResult) -> FilterResult:
    """The results of two sets of samples against the same images, one after the other."""
    names = [field.name for field in fields(FilterResult)]
    return FilterResult(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names))


def write_scores(path: Path, names: Sequence[str], result: FilterResult, reference_names: Sequence[str]) -> None:
    """One row per sample: kept, and its nearest training images. It names real images, so it stays at the site."""
    k = result.distances.shape[1]
    header = ["name", "kept", *(f"{part}_{i + 1}" for i in range(k) for part in ("nearest", "mirrored", "distance_l2"))]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for row, name in enumerate(names):
            cells: list[object] = [name, int(result.kept[row])]
            for i in range(k):
                cells += [
                    reference_names[result.neighbours[row, i]],
                    int(result.mirrored[row, i]),
                    repr(float(result.distances[row, i])),
                ]
            writer.writerow(cells)
