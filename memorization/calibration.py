"""Calibration: how close images of different patients of a site come to each other.

``calibrate`` measures it by the distance of features and sets the threshold of the paper's rule; ``real_to_real``
measures it by every statistic of the fused rule. A nearest distance shrinks as the index grows, so both compare with an
index of the size that the filter will use. The original measured on half of the site and filtered with all of it (D31).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.progress import Progress, silent
from common.seeds import derive_seed
from features.embedders import Embedder, build_embedder
from features.index import nearest
from memorization.copy_score import FUSED_STATISTICS, FusedIndex

log = logging.getLogger(__name__)

RULES = ("fused", "percentile")
CALIBRATIONS = ("cross_fit", "paper_half")
MIRRORS = ("auto", "always", "never")
PAPER_SEED = 42  # of the original's half split
N_RESAMPLES = 1000
DUPLICATE_BY = FUSED_STATISTICS.index("0 to 1 px, best 100 %")  # agreement of the finest detail over the whole frame
DUPLICATE_CORRELATION = 0.99
MAX_CALIBRATING = 200  # images, drawn with a fixed seed: p-values are fine enough then, and each costs a search


@dataclass(frozen=True)
class MemorizationConfig:
    """The filter's rule (``config/memorization/*.yaml``)."""

    rule: str = "fused"  # p-values of registration and embedder together; "percentile": the embedder's distance alone
    embedder: str = "efficientnet_lite0"
    weights: str | None = None  # a local file, for openclip
    percentile: float = 5.0  # per cent of real images, compared with other patients', that the filter may drop
    calibration: str = "cross_fit"  # or "paper_half"
    drop_ties: bool = True  # drop at the threshold itself too; the paper's comparison is strict
    mirror: str = "auto"  # mirrored real images in the index: where the generator saw them; "always"; "never"
    batch_size: int = 32

    def __post_init__(self) -> None:
        allowed = {
            "rule": (self.rule in RULES, f"one of {RULES}"),
            "calibration": (self.calibration in CALIBRATIONS, f"one of {CALIBRATIONS}"),
            "mirror": (self.mirror in MIRRORS, f"one of {MIRRORS}"),
            "percentile": (0 <= self.percentile <= 100, "0 to 100"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
        }
        for key, (holds, wanted) in allowed.items():
            if not holds:
                value = getattr(self, key)
                raise InputError(f"{value!r} is not allowed", where=f"memorization.{key}", fix=f"use {wanted}")
        if self.rule == "fused" and (self.calibration, self.drop_ties) != ("cross_fit", True):
            raise InputError(
                "the fused rule is calibrated patient by patient and drops at a tie",
                where="memorization",
                fix="leave calibration=cross_fit and drop_ties=true, or set rule=percentile",
            )


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
        """Share of real images at or below the threshold; above the percentile where real images are duplicates."""
        return float(np.mean(np.asarray(self.distances) <= self.threshold_l2))


def site_embedder(config: MemorizationConfig, device: str, embeddings: Path | None) -> Embedder:
    """The embedder that the filter's rule names; it keeps features in ``embeddings``, where that is a folder."""
    return build_embedder(
        config.embedder, batch_size=config.batch_size, device=device, weights=config.weights, embeddings=embeddings
    )


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
    names = np.unique(np.asarray(patients))
    n_patients = len(names)
    if n_patients < 2:
        raise InputError(
            f"a threshold between patients cannot be set with {n_patients} patients",
            where="memorization",
            fix="give the site more patients",
        )
    # Order by patient, then along a fixed direction: it depends neither on the stored order nor on rounding.
    direction = np.random.default_rng(0).standard_normal((features.shape[1], 1), np.float32)
    order = np.lexsort(((features @ direction)[:, 0], np.asarray(patients)))
    owner = np.asarray(patients)[order]
    index = features[order][None] if mirrored_features is None else np.stack([features, mirrored_features])[:, order]

    # Groups of patients that are queried, each against images of all other patients. Cross-fit: every patient is
    # queried once, in groups that leave about as many images as the filter's index has. The paper: one half only.
    if config.calibration == "paper_half":
        np.random.default_rng(PAPER_SEED).shuffle(names)
        groups = [np.array_split(names, 2)[1]]
    else:
        n_left_out = max(1, len(owner) - n_references)
        np.random.default_rng(derive_seed(seed, "groups")).shuffle(names)
        groups = np.array_split(names, min(n_patients, max(2, -(-len(owner) // n_left_out))))

    # The distance of every queried image to its nearest reference; mirror images are references, never queries.
    limit = n_references if config.calibration == "cross_fit" else len(owner)
    found, owners, sizes = [], [], []
    for number, group in enumerate(groups):
        is_query = np.isin(owner, group)
        references = np.flatnonzero(~is_query)
        if len(references) > limit:
            rng = np.random.default_rng(derive_seed(seed, "subsample", number))
            references = np.sort(rng.choice(references, limit, replace=False))
        searched = index[:, references].reshape(-1, index.shape[-1])
        found.append(nearest(searched, index[0, is_query], 1)[0][:, 0])
        owners.append(owner[is_query])
        sizes.append(len(references))
    if config.calibration == "cross_fit" and min(sizes) < n_references:
        log.warning("calibrated against %d images where the filter will use %d", min(sizes), n_references)

    # The threshold is a percentile of these distances. Its interval resamples patients: images of one patient are not
    # independent evidence.
    distances, of_patient = np.concatenate(found), np.concatenate(owners)
    order = np.lexsort((distances, of_patient))
    distances, of_patient = distances[order], of_patient[order]
    by_patient = [distances[of_patient == name] for name in np.unique(of_patient)]
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    drawn = rng.integers(0, len(by_patient), (N_RESAMPLES, len(by_patient)))
    resampled = [np.percentile(np.concatenate([by_patient[i] for i in row]), config.percentile) for row in drawn]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Calibration(
        threshold_l2=float(np.percentile(distances, config.percentile)),
        interval_l2=(float(low), float(high)),
        percentile=config.percentile,
        method=config.calibration,
        embedder=config.embedder,
        n_references=min(sizes),
        n_queries=len(distances),
        n_patients=n_patients,
        distances=tuple(float(value) for value in distances),
    )


@dataclass(frozen=True, eq=False)
class RealToReal:
    """How alike images of different patients of a site are.

    ``values`` (n, statistics) of the images that calibrate, ``images`` (n,) their positions among the images given;
    ``duplicates``: pairs (image, its duplicate) of two patients. Duplicates do not calibrate: they are one image under
    two names, and would let copies pass.
    """

    values: np.ndarray
    images: np.ndarray
    duplicates: tuple[tuple[int, int], ...]


def real_to_real(
    images: np.ndarray,
    features: np.ndarray,
    mirrored: np.ndarray | None,
    patients: np.ndarray,
    indexed: np.ndarray,
    progress: Progress = silent,
) -> RealToReal:
    """Compare images with those of other patients among the ``indexed`` (n,), the filter's references.

    Every image, or ``MAX_CALIBRATING`` of them.
    """
    # Every image is compared with the references of other patients. The only patient of an index cannot be.
    positions = np.flatnonzero(indexed)
    same_patient = patients[:, None] == patients[positions][None]
    queries = drawn(np.flatnonzero(~same_patient.all(axis=1)))
    index = FusedIndex(images[positions], features[positions], None if mirrored is None else mirrored[positions])
    likeness = index.compare(images[queries], features[queries], same_patient[queries], progress)
    # Images that agree down to the finest detail over the whole frame are one image.
    is_duplicate = likeness.values[:, DUPLICATE_BY] >= -np.log(1 - DUPLICATE_CORRELATION)
    originals = positions[likeness.nearest[:, DUPLICATE_BY]]
    pairs = [(int(queries[row]), int(originals[row])) for row in np.flatnonzero(is_duplicate)]
    return RealToReal(likeness.values[~is_duplicate], queries[~is_duplicate], tuple(pairs))


def drawn(positions: np.ndarray) -> np.ndarray:
    """At most ``MAX_CALIBRATING`` of them, in order."""
    if len(positions) <= MAX_CALIBRATING:
        return positions
    rng = np.random.default_rng(derive_seed(0, "calibrating"))
    return np.sort(rng.choice(positions, MAX_CALIBRATING, replace=False))
