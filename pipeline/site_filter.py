"""A site's filter as the stages ask it: calibrated on its own patients, it judges any images, its own or received."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json
from common.image_set import ImageSet, load_image_set
from common.progress import Progress, silent
from common.settings import from_dict
from features.embedders import Embedder, build_embedder
from features.embedding_cache import cached
from memorization.calibration import Calibration, MemorizationConfig
from memorization.conformal_pvalues import attainable_level, dropped_of_calibration
from memorization.copy_score import FUSED_STATISTICS, FusedIndex
from memorization.filter import FilterResult, filter_samples, judged_by_likeness, with_ranks
from memorization.likeness import Likeness


@dataclass(frozen=True)
class SiteFilter:
    """What the images are compared with, and by which rule.

    Under the fused rule ``honest`` (n, statistics) is the likeness of the site's images to those of other patients, and
    ``real_to_real_patients`` (n,) says whose images they are.
    """

    config: MemorizationConfig
    calibration: Calibration
    references: ImageSet  # real images of the site
    features: np.ndarray  # of the references
    mirrored: np.ndarray | None  # of their mirror images, where those count
    embedder: Embedder
    honest: np.ndarray | None = None
    real_to_real_patients: np.ndarray | None = None

    def judge(self, images: np.ndarray, progress: Progress = silent) -> FilterResult:
        """Which of the images (n, channels, height, width) are too close to a reference."""
        embedded = self.embedder.embed(images, progress)
        likeness = None if self.honest is None else self.index.compare(images, embedded, progress=progress)
        return self.judge_compared(embedded, likeness)

    def judge_compared(self, embedded: np.ndarray, likeness: Likeness | None) -> FilterResult:
        """As ``judge``, of images whose features and, under the fused rule, likeness to the references are known."""
        result = filter_samples(self.features, embedded, self.calibration.threshold_l2, self.config, self.mirrored)
        if self.honest is None or likeness is None:
            return with_ranks(result, self.calibration.distances)
        return judged_by_likeness(result, self.honest, likeness, FUSED_STATISTICS, self.config.percentile / 100)

    def judge_real(self, held_out: Collection[str], features: np.ndarray) -> tuple[np.ndarray, str]:
        """Which real images (n,) it drops when each is compared with other patients' alone, and how that was judged.

        Args:
            held_out: patients who are not among the references; all the site's are judged where there are none.
            features: (n, d) of the images of the held-out patients.
        """
        if self.honest is not None and self.real_to_real_patients is not None:
            wanted = np.isin(self.real_to_real_patients, list(held_out)) | (not held_out)
            dropped = dropped_of_calibration(self.honest, self.real_to_real_patients, self.config.percentile / 100)
            return dropped[wanted], f"{_whose(held_out)}, each by the calibration on the other patients"
        if held_out:
            result = filter_samples(self.features, features, self.calibration.threshold_l2, self.config, self.mirrored)
            return ~result.kept, f"{_whose(held_out)}, whose distances are among those that set the threshold"
        distances, threshold = np.asarray(self.calibration.distances), self.calibration.threshold_l2
        dropped = distances <= threshold if self.config.drop_ties else distances < threshold
        return dropped, f"{_whose(held_out)}, by their distances that set the threshold"

    @property
    def level(self) -> float:
        """The share of honest images that may be dropped."""
        asked = self.config.percentile / 100
        return asked if self.honest is None else attainable_level(asked, len(self.honest))

    @cached_property
    def index(self) -> FusedIndex:
        """The references, ready for the fused rule."""
        return FusedIndex(self.references.images, self.features, self.mirrored)


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
    images = load_image_set(slices)
    indices = [i for i, entry in enumerate(images.entries) if entry.split in splits]
    mirrored, honest = calibrated / "features_mirrored.npy", calibrated / "likeness.npy"
    patients = np.array([entry.patient for entry in images.entries])
    return SiteFilter(
        config,
        from_dict(Calibration, read_json(calibrated / "calibration.json")),
        images.subset(indices),
        np.load(calibrated / "features.npy")[indices],
        np.load(mirrored)[indices] if mirrored.is_file() else None,
        site_embedder(config, device, embeddings),
        np.load(honest) if honest.is_file() else None,
        patients[np.load(calibrated / "likeness_images.npy")] if honest.is_file() else None,
    )


def _whose(held_out: Collection[str]) -> str:
    return "images of held-out patients" if held_out else "images of every patient, compared with the others'"


def site_embedder(config: MemorizationConfig, device: str, embeddings: Path | None) -> Embedder:
    """The embedder that the filter's rule names, with the features that the site's stages keep."""
    embedder = build_embedder(config.embedder, batch_size=config.batch_size, device=device, weights=config.weights)
    return cached(embedder, embeddings)
