"""The threshold: how close images of different patients of the site come to each other.

A nearest distance shrinks as the index grows, so the threshold must be measured against an index of the size the filter
will use; the original measured it on half of the site and used it on all of it (D31).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.seeds import derive_seed
from features.index import nearest

log = logging.getLogger(__name__)

RULES = ("fused", "percentile")
CALIBRATIONS = ("cross_fit", "paper_half")
MIRRORS = ("auto", "always", "never")
PAPER_SEED = 42  # of the original's half split
N_RESAMPLES = 1000


@dataclass(frozen=True)
class MemorizationConfig:
    """The filter's rule (``config/memorization/*.yaml``)."""

    rule: str = "fused"  # p-values of registration and embedder together; "percentile": the embedder's distance alone
    embedder: str = "efficientnet_lite0"
    weights: str | None = None  # a local file, for openclip
    percentile: float = 5.0  # of honest images as alike as what is dropped
    calibration: str = "cross_fit"  # or "paper_half"
    drop_ties: bool = True  # drop at the threshold itself too; the paper's comparison is strict
    mirror: str = "auto"  # mirrored real images in the index: where the generator saw them; "always"; "never"
    batch_size: int = 32

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("rule", self.rule, RULES),
            ("calibration", self.calibration, CALIBRATIONS),
            ("mirror", self.mirror, MIRRORS),
        ):
            if value not in allowed:
                raise InputError(f"{value!r} is not allowed", where=f"memorization.{key}", fix=f"use one of {allowed}")
        if not 0 <= self.percentile <= 100:
            raise InputError(f"{self.percentile} is no percentile", where="memorization.percentile", fix="use 0 to 100")
        if self.rule == "fused" and (self.calibration, self.drop_ties) != ("cross_fit", True):
            raise InputError(
                "the fused rule is calibrated patient by patient and drops at a tie",
                where="memorization",
                fix="leave calibration=cross_fit and drop_ties=true, or set rule=percentile",
            )
        if self.batch_size < 1:
            raise InputError(f"{self.batch_size} images", where="memorization.batch_size", fix="use 1 or more")


@dataclass(frozen=True)
class Calibration:
    """The threshold and what it rests on; distances are squared L2 of unit vectors."""

    threshold_l2: float
    interval_l2: tuple[float, float]  # 95 % bootstrap interval of the threshold over patients
    percentile: float
    method: str
    embedder: str
    n_references: int  # index size of the measurement
    n_queries: int
    n_patients: int
    distances: tuple[float, ...]

    @property
    def expected_drop(self) -> float:
        """Share of honest images at or below the threshold; above the percentile where real images are duplicates."""
        return float(np.mean(np.asarray(self.distances) <= self.threshold_l2))


def calibrate(
    features: np.ndarray,
    patients: Sequence[str],
    n_references: int,
    config: MemorizationConfig,
    seed: int,
    mirrored_features: np.ndarray | None = None,
) -> Calibration:
    """Measure the threshold on the site's training and validation images.

    Args:
        features: (n, d) unit vectors; ``patients``: one name each.
        n_references: images in the filter's index; the measurement's index has as many, of other patients only.
        mirrored_features: of the mirrored images, which then join both indices.

    Raises:
        InputError: fewer than two patients.
    """
    names = sorted(set(patients))
    if len(names) < 2:
        raise InputError(
            f"{len(names)} patients cannot calibrate a threshold between patients",
            where="memorization",
            fix="give the site more patients",
        )
    order = _stored_order_free(features, patients)
    owner = np.asarray(patients)[order]
    index = features[order][None] if mirrored_features is None else np.stack([features, mirrored_features])[:, order]
    groups = _halves(names) if config.calibration == "paper_half" else _groups(owner, n_references, seed)
    limit = n_references if config.calibration == "cross_fit" else len(owner)
    measured = [
        _measure(index, owner, group, limit, derive_seed(seed, "subsample", i)) for i, group in enumerate(groups)
    ]
    size = min(n_indexed for _, _, n_indexed in measured)
    if config.calibration == "cross_fit" and size < n_references:
        log.warning("calibrated against %d images where the filter will use %d", size, n_references)
    distances = np.concatenate([values for values, _, _ in measured])
    return _summary(distances, np.concatenate([owners for _, owners, _ in measured]), size, len(names), config, seed)


def _stored_order_free(features: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """Positions by patient, then along a fixed direction: an order that rounding of the features leaves alone."""
    direction = np.random.default_rng(0).standard_normal((features.shape[1], 1), np.float32)
    order: np.ndarray = np.lexsort(((features @ direction)[:, 0], np.asarray(patients)))
    return order


def _measure(
    index: np.ndarray, owner: np.ndarray, queried: list[str], n_references: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Nearest distances of the queried patients' images to at most ``n_references`` images of all other patients.

    ``index`` is (1 or 2, n, d): the images and, where given, their mirror images, which are never queried.
    """
    is_query = np.isin(owner, queried)
    references = np.flatnonzero(~is_query)
    if len(references) > n_references:
        references = np.sort(np.random.default_rng(seed).choice(references, n_references, replace=False))
    searched = index[:, references].reshape(-1, index.shape[-1])
    return nearest(searched, index[0, is_query], 1)[0][:, 0], owner[is_query], len(references)


def _halves(names: list[str]) -> list[list[str]]:
    """The paper's split: one half of the patients is queried, the other indexed."""
    shuffled = np.array(names)
    np.random.default_rng(PAPER_SEED).shuffle(shuffled)
    return [[str(name) for name in np.array_split(shuffled, 2)[1]]]


def _groups(owner: np.ndarray, n_references: int, seed: int) -> list[list[str]]:
    """Groups of patients, each queried once, such that all others hold about ``n_references`` images."""
    names, n_images = np.unique(owner), len(owner)
    n_groups = min(len(names), max(2, -(-n_images // max(1, n_images - n_references))))
    np.random.default_rng(derive_seed(seed, "groups")).shuffle(names)
    return [[str(name) for name in part] for part in np.array_split(names, n_groups)]


def _summary(
    distances: np.ndarray, owners: np.ndarray, n_references: int, n_patients: int, config: MemorizationConfig, seed: int
) -> Calibration:
    order = np.lexsort((distances, owners))
    distances, owners = distances[order], owners[order]
    low, high = _bootstrap(distances, owners, config.percentile, seed)
    return Calibration(
        threshold_l2=float(np.percentile(distances, config.percentile)),
        interval_l2=(low, high),
        percentile=config.percentile,
        method=config.calibration,
        embedder=config.embedder,
        n_references=n_references,
        n_queries=len(distances),
        n_patients=n_patients,
        distances=tuple(float(value) for value in distances),
    )


def _bootstrap(distances: np.ndarray, owners: np.ndarray, percentile: float, seed: int) -> tuple[float, float]:
    """Resampling patients, as images of one patient are no independent evidence."""
    of_patient = [distances[owners == name] for name in np.unique(owners)]
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    drawn = rng.integers(0, len(of_patient), (N_RESAMPLES, len(of_patient)))
    values = [np.percentile(np.concatenate([of_patient[i] for i in row]), percentile) for row in drawn]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
