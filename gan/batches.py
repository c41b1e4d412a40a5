"""The real images of every step."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from gan.settings import GanSettings
from training.image_batches import check_form, check_images, integers_to_images, items_of_step, mirror_some


class Batches:
    """Every image once before any is shown again, in a fresh order each time; mirrored at random only where asked."""

    def __init__(self, images: np.ndarray, settings: GanSettings, seed: int) -> None:
        # under differential privacy nothing may be refused for what the images show
        check = check_images if settings.config.privacy is None else check_form
        check(images, settings.n_channels, settings.image_size_px)
        self.images, self.seed = images, seed
        self.batch_size, self.mirror = settings.config.batch_size, settings.config.mirror

    def at(self, step: int) -> Tensor:
        """The whole batch of ``step``: (batch_size, channels, height, width) in [-1, 1]."""
        reals = integers_to_images(self.images[items_of_step(len(self.images), step, self.batch_size, self.seed)])
        if self.mirror:
            mirror_some(reals, step, self.seed)
        return reals
