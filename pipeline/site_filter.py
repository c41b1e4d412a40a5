"""A site's filter as the stages ask it: calibrated on its own patients, it judges any images, its own or received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json
from common.image_set import ImageSet, load_image_set
from common.progress import Progress, silent
from common.settings import from_dict
from memorization.calibration import Calibration, MemorizationConfig
from memorization.embedders import Embedder, build_embedder
from memorization.embedding_cache import cached
from memorization.filter import FilterResult, filter_samples


@dataclass(frozen=True)
class SiteFilter:
    """What the images are compared with, and by which rule."""

    config: MemorizationConfig
    calibration: Calibration
    references: ImageSet  # real images of the site
    features: np.ndarray  # of the references
    mirrored: np.ndarray | None  # of their mirror images, where those count
    embedder: Embedder

    def judge(self, images: np.ndarray, progress: Progress = silent) -> FilterResult:
        """Which of the images (n, channels, height, width) are too close to a reference."""
        embedded = self.embedder.embed(images, progress)
        return filter_samples(self.features, embedded, self.calibration.threshold_l2, self.config, self.mirrored)


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
    mirrored = calibrated / "features_mirrored.npy"
    return SiteFilter(
        config,
        from_dict(Calibration, read_json(calibrated / "calibration.json")),
        images.subset(indices),
        np.load(calibrated / "features.npy")[indices],
        np.load(mirrored)[indices] if mirrored.is_file() else None,
        site_embedder(config, device, embeddings),
    )


def site_embedder(config: MemorizationConfig, device: str, embeddings: Path | None) -> Embedder:
    """The embedder that the filter's rule names, with the features that the site's stages keep."""
    embedder = build_embedder(config.embedder, batch_size=config.batch_size, device=device, weights=config.weights)
    return cached(embedder, embeddings)
