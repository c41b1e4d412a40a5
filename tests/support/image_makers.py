"""Small images and small scorers of them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from common.progress import Progress, silent
from memorization.copy_score import Likeness
from memorization.leakage.evidence import Evidence
from memorization.registration.maps import SIZE_PX


def textures(n: int, seed: int, size: int = SIZE_PX) -> np.ndarray:
    """Random images with structure at several scales, as uint8 (n, 1, size, size)."""
    rng = np.random.default_rng(seed)
    images = sum(
        weight * ndimage.gaussian_filter(rng.standard_normal((n, size, size)), (0, sigma, sigma), mode="wrap") * sigma
        for sigma, weight in ((1, 1.0), (3, 2.0), (8, 3.0))
    )
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return np.rint(255 * (images - low) / (high - low)).astype(np.uint8)[:, None]


class PixelScorer:
    """Sees a copy only where not one pixel has changed."""

    name, statistics = "pixels", ("pixels",)

    def index(self, references: np.ndarray) -> PixelScorer:
        self._references = references.reshape(len(references), -1).astype(float)
        return self

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        differences = np.abs(images.reshape(len(images), 1, -1) - self._references[None]).mean(2)
        if excluded is not None:
            differences[excluded] = np.inf
        nearest = differences.argmin(1)
        return Likeness(-differences.min(1)[:, None], nearest[:, None])


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 16, 16), dtype=np.uint8)


class PixelEmbedder:
    """Unit vectors of pixels; counts the images it was shown."""

    name, dimension = "pixels", 64

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def embed(self, images: np.ndarray, progress: object = None) -> np.ndarray:
        self.shown += list(images)
        flat = images.reshape(len(images), 64).astype(np.float64) - 127.5
        return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)


def evidence_of(copies: bool, seed: int = 0) -> Evidence:
    """Two images a patient; generated images are training images and a little noise, or honest draws."""
    rng = np.random.default_rng(seed)
    train, heldout, honest = (directions(n, rng) for n in (N_REAL, N_REAL, N_GENERATED))
    copied = np.tile(train, (2, 1)) + 1e-3 * rng.normal(size=(2 * N_REAL, DIMENSION))
    owners = [[f"{side}{i // 2}" for i in range(N_REAL)] for side in "th"]
    return Evidence(train, owners[0], heldout, owners[1], copied if copies else honest, seed)


N_REAL, N_GENERATED, DIMENSION = 300, 600, 24


def directions(n: int, rng: np.random.Generator) -> np.ndarray:
    vectors = rng.normal(size=(n, DIMENSION))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
