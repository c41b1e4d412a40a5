"""The filter of a site: which images are more similar to one of its real images than real images of others are."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path, read_json
from common.image_set import ImageSet, load_image_set
from common.progress import Progress, silent
from common.settings import from_dict
from features.embedders import Embedder
from features.index import nearest
from memorization.calibration import Calibration, MemorizationConfig, site_embedder
from memorization.conformal_pvalues import attainable_level, deciding_statistic, dropped_of_calibration, p_values
from memorization.copy_score import FUSED_STATISTICS, FusedIndex, Likeness


@dataclass(frozen=True)
class FilterResult:
    """Verdicts on m samples, and what they rest on.

    ``kept`` (m,). ``p_values`` (m,): the share of real images at least as similar to one of another patient (NaN:
    unknown). ``originals`` (m,): the training image to which each is most similar; ``seen_by`` (m,): the name of the
    statistic that says so. ``distances``, ``neighbours`` and ``mirrored`` (m, k), nearest first, and ``features``
    (m, d) are the embedder's; ``neighbours`` are positions of training images, and ``mirrored`` says that the mirror
    image was the near one.
    """

    kept: np.ndarray
    p_values: np.ndarray
    originals: np.ndarray
    seen_by: np.ndarray
    distances: np.ndarray
    neighbours: np.ndarray
    mirrored: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class SiteFilter:
    """What the images are compared with, and by which rule.

    Under the fused rule ``real_to_real`` (n, statistics) is the likeness of the site's images to those of other
    patients, and ``real_to_real_patients`` (n,) says whose images they are.
    """

    config: MemorizationConfig
    calibration: Calibration
    references: ImageSet  # real images of the site
    features: np.ndarray  # of the references
    mirrored: np.ndarray | None  # of their mirror images, where those count
    embedder: Embedder
    real_to_real: np.ndarray | None = None
    real_to_real_patients: np.ndarray | None = None

    def judge(self, images: np.ndarray, progress: Progress = silent) -> FilterResult:
        """Which of the images (n, channels, height, width) are too close to a reference."""
        embedded = self.embedder.embed(images, progress)
        likeness = None if self.real_to_real is None else self.index.compare(images, embedded, progress=progress)
        return self.judge_compared(embedded, likeness)

    def judge_compared(self, embedded: np.ndarray, likeness: Likeness | None) -> FilterResult:
        """As ``judge``, of images whose features and, under the fused rule, likeness to the references are known."""
        # The rule of the features: the distance to the nearest reference against the calibrated threshold.
        result = filter_samples(self.features, embedded, self.calibration.threshold_l2, self.config, self.mirrored)
        if self.real_to_real is not None and likeness is not None:
            # The fused rule: the p-value of all statistics together against the level.
            level = self.config.percentile / 100
            return judged_by_likeness(result, self.real_to_real, likeness, FUSED_STATISTICS, level)
        # For the record, the rank of each distance among the distances between real images.
        ordered = np.sort(self.calibration.distances)
        as_close = np.searchsorted(ordered, result.distances[:, 0], side="right")
        return replace(result, p_values=(1 + as_close) / (1 + len(ordered)))

    def judge_real(self, held_out: Collection[str], features: np.ndarray) -> tuple[np.ndarray, str]:
        """Which real images (n,) it drops when each is compared with other patients' alone, and how that was judged.

        Args:
            held_out: patients who are not among the references; all the site's are judged where there are none.
            features: (n, d) of the images of the held-out patients.
        """
        whose = "images of held-out patients" if held_out else "images of every patient, compared with the others'"
        if self.real_to_real is not None and self.real_to_real_patients is not None:
            wanted = np.isin(self.real_to_real_patients, list(held_out)) | (not held_out)
            level = self.config.percentile / 100
            dropped = dropped_of_calibration(self.real_to_real, self.real_to_real_patients, level)
            return dropped[wanted], f"{whose}, each by the calibration on the other patients"
        threshold = self.calibration.threshold_l2
        if held_out:
            result = filter_samples(self.features, features, threshold, self.config, self.mirrored)
            return ~result.kept, f"{whose}, whose distances are among those that set the threshold"
        distances = np.asarray(self.calibration.distances)
        dropped = distances <= threshold if self.config.drop_ties else distances < threshold
        return dropped, f"{whose}, by their distances that set the threshold"

    @property
    def level(self) -> float:
        """The share of real images that may be dropped."""
        asked = self.config.percentile / 100
        return asked if self.real_to_real is None else attainable_level(asked, len(self.real_to_real))

    @cached_property
    def index(self) -> FusedIndex:
        """The references, ready for the fused rule."""
        return FusedIndex(self.references.images, self.features, self.mirrored)


def filter_samples(
    reference_features: np.ndarray,
    sample_features: np.ndarray,
    threshold_l2: float,
    config: MemorizationConfig,
    mirrored_features: np.ndarray | None = None,
) -> FilterResult:
    """The rule of the features: drop a sample whose squared distance to the nearest training image is too small.

    Mirror images of the training images count where they are given. A sample whose distance is not a number is dropped:
    what cannot be compared does not leave.
    """
    index = reference_features
    if mirrored_features is not None:
        index = np.concatenate([reference_features, mirrored_features])
    distances, positions = nearest(index, sample_features)
    closest = distances[:, 0]
    kept = closest > threshold_l2 if config.drop_ties else closest >= threshold_l2
    n_references = len(reference_features)
    neighbours = positions % n_references
    return FilterResult(
        kept=kept,
        p_values=np.full(len(kept), np.nan),
        originals=neighbours[:, 0],
        seen_by=np.full(len(kept), config.embedder),
        distances=distances,
        neighbours=neighbours,
        mirrored=positions >= n_references,
        features=sample_features,
    )


def judged_by_likeness(
    result: FilterResult, real_to_real: np.ndarray, likeness: Likeness, statistics: Sequence[str], level: float
) -> FilterResult:
    """The fused rule: drop a sample whose p-value among real images is at most the level (full conformal prediction).

    Args:
        result: by the features; what the fused rule decides is replaced.
        real_to_real: (n, s) likeness of real images to those of other patients; ``likeness``: of the samples.
        level: share of real images that may be dropped; a site too small for it gets the lowest level it can have.
    """
    p = p_values(real_to_real, likeness.values)
    kept = p > attainable_level(level, len(real_to_real))
    column = deciding_statistic(real_to_real, likeness.values)
    originals = likeness.nearest[np.arange(len(column)), column]
    return replace(result, kept=kept, p_values=p, originals=originals, seen_by=np.asarray(statistics)[column])


def joined(first: FilterResult, second: FilterResult) -> FilterResult:
    """The results of two sets of samples against the same images, one after the other."""
    names = [field.name for field in fields(FilterResult)]
    return FilterResult(**{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names})


def load_site_filter(
    calibrated: Path,
    slices: Path,
    settings: Mapping[str, Any],
    splits: tuple[str, ...],
    device: str,
    embeddings: Path | None,
) -> SiteFilter:
    """The filter of a site.

    Args:
        calibrated: folder of its ``calibrate``; ``slices``: of its ``slices``.
        settings: of the stage, with the filter's rule under ``memorization``.
        splits: whose images it compares with.
        embeddings: folder of the site's features of images; None: none are kept.
    """
    config = from_dict(MemorizationConfig, settings["memorization"], "memorization")
    calibration = from_dict(Calibration, read_json(calibrated / "calibration.json"))
    images = load_image_set(slices)
    indices = [i for i, entry in enumerate(images.entries) if entry.split in splits]
    mirrored, likeness = calibrated / "features_mirrored.npy", calibrated / "likeness.npy"
    patients = np.array([entry.patient for entry in images.entries])
    return SiteFilter(
        config=config,
        calibration=calibration,
        references=images.subset(indices),
        features=np.load(calibrated / "features.npy")[indices],
        mirrored=np.load(mirrored)[indices] if mirrored.is_file() else None,
        embedder=site_embedder(config, device, embeddings),
        real_to_real=np.load(likeness) if likeness.is_file() else None,
        real_to_real_patients=patients[np.load(calibrated / "likeness_images.npy")] if likeness.is_file() else None,
    )


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
                neighbour, mirrored = reference_names[result.neighbours[row, i]], int(result.mirrored[row, i])
                cells += [neighbour, mirrored, repr(float(result.distances[row, i]))]
            writer.writerow(cells)
