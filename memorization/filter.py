"""The filter of a site: which images are more similar to one of its real images than real images of others are."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
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
    make_embedder: Callable[[], Embedder]  # called on first use: not every stage embeds images
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
    def embedder(self) -> Embedder:
        """The embedder of the filter's rule."""
        return self.make_embedder()

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


POWER = 6  # of 1 to infinity, the sum to the largest: measured on planted copies in docs/results/filter.md
SAME_SCORE = 1e-9  # relative: what rounding may make of two equal scores
SPREAD_AT = 0.97  # the spread is from the median to this quantile, about where it is decided: a heavy tail of one
# statistic would otherwise hide what the others see
LEAST_SPREAD = 1e-3
BLOCK = 256  # queries at once


def p_values(calibration: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(m,) of ``queries`` (m, s) among ``calibration`` (n, s), likeness of real images; larger means more similar.

    Every statistic is measured in spreads above its median, and an image's score is the sum of their sixth powers. That
    is little more than the largest one alone: an image that one statistic finds is found, and the images near the line
    depend less on a single statistic of a single calibration image.

    Median and spread are taken over the calibration images *and* the image in question (full conformal prediction, Vovk
    et al. 2005, ch. 2), so that the score treats all of them alike: if their rows are exchangeable, P(p <= a) <= a for
    every a, however many statistics there are and however they depend on each other. The rows of a site are not quite:
    a calibration image was never compared with the image in question, which was compared with all of them, and nearest
    pairs are mutual. So an image of a new patient is dropped with up to about twice the level at small sites. Only
    patients are exchangeable: where they have several images each, the rate is that of as many calibration images as
    there are patients, and varies more from site to site (docs/results/filter.md).

    A smallest or Bonferroni-corrected p over the statistics has the same guarantee and no power at a small site: with
    30 images no single p is below 1/31, so no corrected one below 23/31.
    """
    found = [np.zeros(0)]
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        median, spread = _median_and_spread(calibration, block)
        own = _score(block, median, spread)
        others = _score(calibration[None], median[:, None], spread[:, None])
        # ties count: a copy is not less of a copy because a real image is as similar
        as_alike = (others >= (1 - SAME_SCORE) * own[:, None]).sum(axis=1)
        found.append((1 + as_alike) / (1 + len(calibration)))
    return np.concatenate(found)


def attainable_level(level: float, n_calibration: int) -> float:
    """The level itself, or the smallest p there is: below ``1 / (n + 1)`` nothing at all would ever be dropped."""
    return max(level, 1 / (n_calibration + 1))


def dropped_of_calibration(calibration: np.ndarray, patients: np.ndarray, level: float) -> np.ndarray:
    """(n,) which calibration images (n, s) would be dropped, each judged by the calibration on the other patients.

    An image among its own calibration images is never the most similar of all, so that too few would be dropped.
    """
    dropped = np.zeros(len(calibration), bool)
    for patient in np.unique(patients):
        own = patients == patient
        others = calibration[~own]
        if len(others):
            dropped[own] = p_values(others, calibration[own]) <= attainable_level(level, len(others))
    return dropped


def deciding_statistic(calibration: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(m,) which statistic has most of each query's score."""
    median, spread = _median_and_spread(calibration, queries)
    return np.asarray(((queries - median) / spread).argmax(axis=1))


def fused_scores(calibration: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(m,) the root of the scores, in spreads above the median; for drawing and for curves, not for deciding."""
    median, spread = _median_and_spread(calibration, queries)
    return np.asarray(_score(queries, median, spread) ** (1 / POWER))


def _score(values: np.ndarray, median: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(...,) of values (..., s); statistic by statistic, as all at once would take s times the memory."""
    score = np.zeros(np.broadcast_shapes(values.shape, median.shape)[:-1])
    for column in range(values.shape[-1]):
        above = np.maximum((values[..., column] - median[..., column]) / spread[..., column], 0)
        score += above**POWER
    return score


def _median_and_spread(calibration: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, s) each: order statistics of the calibration images with the query among them.

    The statistic of a quantile is the smallest of the ``n + 1`` values with at least that share at or below it. It is
    never the largest: at a small site a copy would be its own measure, and no copy would stand out.
    """
    ordered, n = np.sort(calibration, axis=0), len(calibration)
    of_quantile = []
    for quantile in (0.5, SPREAD_AT):
        rank = max(1, min(n, int(np.ceil(quantile * (n + 1) - 1e-9))))
        low = ordered[rank - 2] if rank >= 2 else np.full(ordered.shape[1], -np.inf)
        of_quantile.append(np.clip(queries, low, ordered[rank - 1]))
    median, high = of_quantile
    return median, np.maximum(high - median, LEAST_SPREAD)


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
        make_embedder=partial(site_embedder, config, device, embeddings),
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
