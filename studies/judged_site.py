"""A site with its filter in memory; its images are judged by filter and audit, and by their pixels independently.

For studies that ask many questions of one site; an experiment does the same in its stages calibrate, filter and audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.progress import Progress, silent
from memorization.calibration import MemorizationConfig, calibrate, real_to_real, site_embedder
from memorization.copy_score import Likeness
from memorization.filter import FilterResult, SiteFilter
from memorization.gates import GatesConfig
from memorization.planted.planted_audit import Decision, fused_rule, recalibrated
from memorization.site_audit import AuditImages, SiteAudit, audit
from studies.generator_study import StudySite


@dataclass(frozen=True, eq=False)
class CalibratedSite:
    """A site with its filter; ``calibration`` (n, statistics) of its images and ``calibration_patients`` (n,)."""

    site: StudySite
    filter: SiteFilter
    calibration: np.ndarray
    calibration_patients: np.ndarray


@dataclass(frozen=True, eq=False)
class JudgedImages:
    """Images with the filter's verdicts, and ``correlation`` (m,) of their pixels with the ``nearest`` trained on."""

    images: np.ndarray
    result: FilterResult
    likeness: Likeness
    correlation: np.ndarray
    nearest: np.ndarray

    def is_copy(self, correlation: float) -> np.ndarray:
        """(m,) by the pixels alone: from this correlation on, whatever the filter says."""
        return np.asarray(self.correlation >= correlation)

    @property
    def is_dropped(self) -> np.ndarray:
        """(m,) by the filter."""
        return ~self.result.kept


def calibrate_site(
    site: StudySite,
    config: MemorizationConfig,
    mirrored: bool,
    seed: int,
    device: str = "cpu",
    embeddings: Path | None = None,
    progress: Progress = silent,
) -> CalibratedSite:
    """As the stage ``calibrate`` does: every image of the site against those of other patients trained on.

    Raises:
        InputError: another rule than the fused one, or fewer than two patients.
    """
    if config.rule != "fused":
        raise InputError(
            f"the rule {config.rule!r} is not studied", where="memorization.rule", fix="use memorization=offline"
        )
    real, n_references = site.own, len(site.trained_on)
    embedder = site_embedder(config, device, embeddings)
    features = embedder.embed(real.images, progress)
    of_mirrored = embedder.embed(real.images[..., ::-1], progress) if mirrored else None
    patients = np.array([entry.patient for entry in real.entries])
    indexed = np.arange(len(real)) < n_references
    calibration = calibrate(features, patients.tolist(), n_references, config, seed, of_mirrored)
    likeness = real_to_real(real.images, features, of_mirrored, patients, indexed, progress)
    likeness_patients = patients[likeness.images]
    own = SiteFilter(
        config=config,
        calibration=calibration,
        references=site.trained_on,
        features=features[indexed],
        mirrored=None if of_mirrored is None else of_mirrored[indexed],
        make_embedder=lambda: embedder,
        real_to_real=likeness.values,
        real_to_real_patients=likeness_patients,
    )
    return CalibratedSite(site, own, likeness.values, likeness_patients)


def judge_images(calibrated: CalibratedSite, images: np.ndarray, progress: Progress = silent) -> JudgedImages:
    """The filter as it is in use on (m, channels, height, width), and the pixels."""
    own = calibrated.filter
    embedded = own.embedder.embed(images)
    likeness = own.index.compare(images, embedded, progress=progress)
    correlation, nearest = pixel_correlation(images, calibrated.site.trained_on.images)
    return JudgedImages(images, own.judge_compared(embedded, likeness), likeness, correlation, nearest)


def pixel_correlation(images: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m,) largest correlation of an image's pixels with those of a reference or its mirror image, and (m,) which.

    It shares nothing with the filter: no features, no alignment, no calibration.
    """
    queries = _standardised(images)
    views = np.stack([queries @ _standardised(view).T for view in (references, references[..., ::-1])]).max(axis=0)
    return views.max(axis=1), views.argmax(axis=1)


def _standardised(images: np.ndarray) -> np.ndarray:
    """(n, pixels) with mean 0 and length 1."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))


def decide_by(calibrated: CalibratedSite, positions: np.ndarray) -> Decision:
    """The fused rule calibrated on these rows alone, at the level that so many allow."""
    return fused_rule(calibrated.calibration, calibrated.filter.config.percentile / 100)(positions)


def decisions(calibrated: CalibratedSite, judged: Sequence[JudgedImages], seed: int) -> np.ndarray:
    """(calibrations, images) what is dropped after calibrations on other parts of the site's patients."""
    queries = np.concatenate([part.likeness.values for part in judged])
    return recalibrated(calibrated.calibration_patients, queries, partial(decide_by, calibrated), seed)


def audit_images(
    calibrated: CalibratedSite, features: np.ndarray, n_sampled: int, config: GatesConfig, seed: int
) -> SiteAudit:
    """The audit stage's verdict on images with these features (m, d), of ``n_sampled``; held out are the unseen."""
    unseen, own = calibrated.site.unseen, calibrated.filter
    trained, heldout = ([str(entry.patient) for entry in of.entries] for of in (own.references, unseen))
    images = AuditImages(own.features, trained, own.embedder.embed(unseen.images), heldout, features)
    return audit(images, n_sampled, config, seed).audit
