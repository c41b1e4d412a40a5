"""Drop synthetic images that are more alike a training image than honest images are."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from common.files import atomic_path
from features.index import nearest
from memorization.calibration import MemorizationConfig
from memorization.conformal_pvalues import attainable_level, deciding_statistic, p_values
from memorization.likeness import Likeness


@dataclass(frozen=True)
class FilterResult:
    """Verdicts on m samples, and what they rest on.

    ``kept`` (m,). ``p_values`` (m,): the share of honest images at least as alike a real one (NaN: unknown).
    ``originals`` (m,): the training image each is most alike; ``seen_by`` (m,): the name of the statistic that says
    so. ``distances``, ``neighbours`` and ``mirrored`` (m, k), nearest first, and ``features`` (m, d) are the
    embedder's; ``neighbours`` counts training images, and ``mirrored`` says that the near one was their mirror image.
    """

    kept: np.ndarray
    p_values: np.ndarray
    originals: np.ndarray
    seen_by: np.ndarray
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
    neighbours = positions % n_references
    unknown = np.full(len(kept), np.nan)
    seen_by = np.full(len(kept), config.embedder)
    return FilterResult(
        *(kept, unknown, neighbours[:, 0], seen_by),
        *(distances, neighbours, positions >= n_references, sample_features),
    )


def with_ranks(result: FilterResult, honest_distances: Sequence[float]) -> FilterResult:
    """The same verdicts with each sample's rank among distances between honest images as its p-value."""
    ordered = np.sort(honest_distances)
    as_close = np.searchsorted(ordered, result.distances[:, 0], side="right")
    return replace(result, p_values=(1 + as_close) / (1 + len(ordered)))


def judged_by_likeness(
    result: FilterResult, honest: np.ndarray, likeness: Likeness, statistics: Sequence[str], level: float
) -> FilterResult:
    """The verdicts of the fused rule instead of the embedder's alone.

    Args:
        honest: (n, s) likeness of real images to those of other patients; ``likeness``: of the samples.
        level: of honest images that may be dropped; a site too small for it gets the lowest level it can have.
    """
    p = p_values(honest, likeness.values)
    kept = p > attainable_level(level, len(honest))
    column = deciding_statistic(honest, likeness.values)
    originals = likeness.nearest[np.arange(len(column)), column]
    return replace(result, kept=kept, p_values=p, originals=originals, seen_by=np.asarray(statistics)[column])


def joined(first: FilterResult, second: FilterResult) -> FilterResult:
    """The results of two sets of samples against the same images, one after the other."""
    names = [field.name for field in fields(FilterResult)]
    return FilterResult(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names))


def write_scores(path: Path, names: Sequence[str], result: FilterResult, reference_names: Sequence[str]) -> None:
    """One row per sample: kept, and its nearest training images. It names real images, so it stays at the site."""
    k = result.distances.shape[1]
    header = ["name", "kept", "p_value", "original", "seen_by"]
    header += [f"{part}_{i + 1}" for i in range(k) for part in ("nearest", "mirrored", "distance_l2")]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for row, name in enumerate(names):
            cells: list[object] = [name, int(result.kept[row]), repr(float(result.p_values[row]))]
            cells += [reference_names[result.originals[row]], result.seen_by[row]]
            for i in range(k):
                cells += [
                    reference_names[result.neighbours[row, i]],
                    int(result.mirrored[row, i]),
                    repr(float(result.distances[row, i])),
                ]
            writer.writerow(cells)
