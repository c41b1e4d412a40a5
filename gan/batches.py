"""The real images of each step, in an order that follows from the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from common.seeds import derive_seed
from gan.settings import GanSettings
from training.image_batches import check_images, integers_to_images, items_of_step, mirror_some


class Batches:
    """Every image once before any is shown again, in a fresh order each time; mirrored at random only where asked."""

    def __init__(self, images: np.ndarray, settings: GanSettings, seed: int) -> None:
        check_images(images, settings.n_channels, settings.image_size_px)
        self.images, self.seed = images, seed
        self.batch_size, self.mirror = settings.config.batch_size, settings.config.mirror

    def at(self, step: int) -> Tensor:
        """The whole batch of ``step``: (batch_size, channels, height, width) in [-1, 1]."""
        return self._shown(items_of_step(len(self.images), step, self.batch_size, self.seed), step)

    def _shown(self, chosen: Sequence[int], step: int) -> Tensor:
        reals = integers_to_images(self.images[chosen])
        if self.mirror:
            mirror_some(reals, step, self.seed)
        return reals


class PoissonBatches(Batches):
    """Each image by itself with probability batch size / images, which the accountant's amplification assumes.

    Whose images are in a step is part of what is secret.
    """

    def __init__(self, images: np.ndarray, settings: GanSettings, seed: int, secret: str) -> None:
        super().__init__(images, settings, seed)
        self.secret = secret

    def at(self, step: int) -> Tensor:
        """Those of ``step``, as many as it comes: (n, channels, height, width) in [-1, 1]."""
        numbers = np.random.default_rng(derive_seed(self.secret, step, "sampling")).random(len(self.images))
        return self._shown(np.flatnonzero(numbers < self.batch_size / len(self.images)).tolist(), step)
