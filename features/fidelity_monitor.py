"""Scores of a generator's samples during its training: against held-out patients' images, in offline features.

Held-out are the validation patients of the outer fold where the generator trains on the training patients alone; the
fold's test patients are not in the slices and never seen. Where it trains on both, nobody is held out: the monitor
then says so, compares with training images alone, and the last snapshot is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.image_set import ImageSet
from common.seeds import derive_seed
from features.embedders import Embedder, build_embedder, cached
from features.fidelity import frechet_distance, kernel_distance, kernel_interval
from features.index import RESOLUTION_L2, nearest
from training.monitor import (
    COPIED_TRAIN,
    DIVERSITY,
    FRECHET_HELDOUT,
    FRECHET_TRAIN,
    KERNEL_HELDOUT,
    KERNEL_HELDOUT_ERROR,
    KERNEL_TRAIN,
    NEAREST_TRAIN,
)

log = logging.getLogger(__name__)

EMBEDDER = "efficientnet_lite0"  # offline, whatever the filter's: the scores must cost little
BATCH_SIZE = 32
SECONDS_PER_IMAGE = {"cpu": 0.1, "cuda": 1e-3}  # one core of a busy machine (measured); a GPU (a cautious guess)
MIN_HELDOUT_IMAGES, MIN_HELDOUT_PATIENTS = 8, 2
MAX_HELDOUT_SHARE = 0.5  # of the real images that are embedded, where not all can be
MAX_COMPARED = 1024  # training images in the Fréchet and the kernel distance; the nearest one is sought among all
UNSEEN_SHARE = 0.05  # of unseen patients' images that lie as near to a training image as what counts as copied
BLOCK = 1024


@dataclass(frozen=True)
class References:
    """What samples are compared with: features (n, d) scaled to root mean square 1, as the kernel expects."""

    index: np.ndarray  # of the training images, mirrored ones too where the generator sees them
    compared: np.ndarray  # of at most MAX_COMPARED training images
    compared_patients: tuple[str, ...]
    heldout: np.ndarray  # (0, d) where nobody is held out
    heldout_patients: tuple[str, ...]
    unseen_distance: float  # median distance of an image to the nearest training image of another patient
    copy_distance: float  # nearer than this only UNSEEN_SHARE of those images are
    spread: float  # mean distance between two training images


class FidelityMonitor:
    """The monitor of one site. Real images are embedded on first use and again after a resume, to the same features."""

    def __init__(
        self,
        training: ImageSet,
        heldout: ImageSet,
        seed: int,
        device: str = "cpu",
        mirrored: bool = False,
        embeddings: Path | None = None,
    ) -> None:
        """The monitor.

        Args:
            heldout: images the generator does not train on; those of training patients are left out.
            embeddings: where features of real images are kept, those of other stages too.
        """
        seen = {entry.patient for entry in training.entries}
        unseen = [i for i, entry in enumerate(heldout.entries) if entry.patient not in seen]
        n_patients = len({heldout.entries[i].patient for i in unseen})
        if len(unseen) < MIN_HELDOUT_IMAGES or n_patients < MIN_HELDOUT_PATIENTS:
            log.warning(
                "no held-out patients can score the generator (%d images of %d patients it does not train on): "
                "scores compare with its training images alone, and no snapshot is preferred to the last",
                *(len(unseen), n_patients),
            )
            unseen = []
        self.training, self.heldout = training, heldout.subset(unseen)
        self.seconds_per_image = SECONDS_PER_IMAGE["cuda" if device.startswith("cuda") else "cpu"]
        self._seed, self._device, self._mirrored = seed, device, mirrored
        self._embeddings = embeddings
        self._embedder: Embedder | None = None
        self._references: References | None = None

    @property
    def n_references(self) -> int:
        """Images that are embedded once."""
        return len(self.training) * (2 if self._mirrored else 1) + len(self.heldout)

    def measure(self, samples: np.ndarray, n_references: int) -> Mapping[str, float]:
        """Scores by name (``training.monitor``); those of held-out patients only where there are some."""
        if self._references is None:
            self._references = self._embed_references(n_references)
        real, features = self._references, self.embed(samples)
        distances = _nearest_distances(real.index, features)
        scores = {
            FRECHET_TRAIN: frechet_distance(features, real.compared),
            KERNEL_TRAIN: kernel_distance(features, real.compared, real.compared_patients),
            NEAREST_TRAIN: float(np.median(distances)) / real.unseen_distance,
            COPIED_TRAIN: float(np.mean(distances < real.copy_distance)),
            DIVERSITY: _mean_distance(features) / real.spread,
        }
        if len(real.heldout):
            seed = derive_seed(self._seed, "kernel interval")
            estimate = kernel_interval(features, real.heldout, seed, owners_b=real.heldout_patients)
            scores[FRECHET_HELDOUT] = frechet_distance(features, real.heldout)
            scores[KERNEL_HELDOUT], scores[KERNEL_HELDOUT_ERROR] = estimate.value, estimate.standard_error
        return {name: round(value, 9) for name, value in scores.items()}

    def embed(self, images: np.ndarray, keep: bool = False) -> np.ndarray:
        """(n, d) features whose squares are 1 on average; unit vectors would make the kernel a linear one.

        ``keep``: they will be asked for again, by this or another stage.
        """
        if self._embedder is None:
            self._embedder = build_embedder(EMBEDDER, batch_size=BATCH_SIZE, device=self._device)
        embedder = cached(self._embedder, self._embeddings if keep else None)
        features = embedder.embed(images).astype(np.float64)
        return np.asarray(features * np.sqrt(features.shape[1]))

    def _embed_references(self, n_references: int) -> References:
        training, heldout = self._within(n_references)
        features = self.embed(training.images, keep=True)
        views = [features, self.embed(training.images[..., ::-1], keep=True)] if self._mirrored else [features]
        index, others = np.concatenate(views), self.embed(heldout.images, keep=True)
        owners = np.array([entry.patient for entry in training.entries])
        if len(heldout):
            distances = _nearest_distances(index, others)
        else:
            distances = _nearest_of_other_patients(features, index, owners)
        smallest = float(np.sqrt(RESOLUTION_L2))
        compared = np.random.default_rng(derive_seed(self._seed, "compared")).permutation(len(features))[:MAX_COMPARED]
        return References(
            index,
            features[compared],
            tuple(str(owner) for owner in owners[compared]),
            others,
            tuple(entry.patient for entry in heldout.entries),
            max(float(np.median(distances)), smallest),
            max(float(np.quantile(distances, UNSEEN_SHARE)), smallest),
            max(_mean_distance(features), smallest),
        )

    def _within(self, n_references: int) -> tuple[ImageSet, ImageSet]:
        """The real images, or as many as are allowed, drawn once."""
        n_views = 2 if self._mirrored else 1
        if n_references >= self.n_references:
            return self.training, self.heldout
        n_heldout = min(len(self.heldout), max(MIN_HELDOUT_IMAGES, int(MAX_HELDOUT_SHARE * n_references)))
        n_training = max(2, min(len(self.training), (n_references - n_heldout) // n_views))
        log.info(
            "the monitor looks at %d of %d training and %d of %d held-out images, to stay within its time",
            *(n_training, len(self.training), n_heldout, len(self.heldout)),
        )
        rng = np.random.default_rng(derive_seed(self._seed, "references"))
        picked = [
            images.subset(np.sort(rng.choice(len(images), n_images, replace=False)))
            for images, n_images in ((self.training, n_training), (self.heldout, n_heldout))
        ]
        return picked[0], picked[1]


def _nearest_distances(index: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Of unit vectors, for which ``nearest`` knows when two are the same."""
    scale = 1 / np.sqrt(index.shape[1])
    return np.sqrt(nearest(index * scale, queries * scale, 1)[0][:, 0])


def _nearest_of_other_patients(features: np.ndarray, index: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Distance of every image to the nearest of another patient in the index (the images, then their mirror images)."""
    n_features, n_views = features.shape[1], len(index) // len(features)
    distances = np.empty(len(features))
    for start in range(0, len(features), BLOCK):
        block = slice(start, start + BLOCK)
        cosines = features[block] @ index.T / n_features
        cosines[owners[block, None] == np.tile(owners, n_views)[None]] = -1.0
        distances[block] = np.sqrt(np.clip(2 - 2 * cosines.max(axis=1), 0, None))
    return distances


def _mean_distance(features: np.ndarray) -> float:
    """Root of the mean squared distance between two different rows: twice the trace of the covariance."""
    return float(np.sqrt(2 * features.var(axis=0, ddof=1).sum()))
