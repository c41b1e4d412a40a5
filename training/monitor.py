"""What a generator's training asks about its samples, so that it needs to know neither embedders nor patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

KERNEL_HELDOUT = "kernel_heldout"  # unbiased kernel distance to held-out patients' images
KERNEL_HELDOUT_ERROR = "kernel_heldout_error"  # its standard error
FRECHET_HELDOUT = "frechet_heldout"
KERNEL_TRAIN = "kernel_train"  # to the training images: low also where the generator copies
FRECHET_TRAIN = "frechet_train"
NEAREST_TRAIN = "nearest_train"  # distance to the nearest training image; 1: as near as an unseen patient's images are
COPIED_TRAIN = "copied_train"  # share nearer to a training image than 19 of 20 unseen patients' images are
DIVERSITY = "diversity"  # mean distance between two samples; 1: as between two real images


class Monitor(Protocol):
    """Scores of samples against real images; the same samples give the same scores."""

    @property
    def n_references(self) -> int:
        """Real images that are embedded once."""

    @property
    def seconds_per_image(self) -> float:
        """About what embedding one image takes on the device in use."""

    def measure(self, samples: np.ndarray, n_references: int) -> Mapping[str, float]:
        """Scores by name of (n, channels, height, width) integers, with ``n_references`` of the real images at most."""
