"""The real images of each step, in an order that follows from the seed alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.seeds import derive_seed
from gan.settings import GanSettings


class Batches:
    """Every image once before any is shown again, in a fresh order each time; mirrored at random only where asked."""

    def __init__(self, images: np.ndarray, settings: GanSettings, seed: int) -> None:
        # under differential privacy nothing may be refused for what the images show
        (check_images if settings.config.privacy is None else check_form)(images, settings)
        self.images, self.seed = images, seed
        self.batch_size, self.mirror = settings.config.batch_size, settings.config.mirror

    def at(self, step: int) -> Tensor:
        """The whole batch of ``step``: (batch_size, channels, height, width) in [-1, 1]."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {epoch: self._order(epoch) for epoch in {position // len(self.images) for position in positions}}
        chosen = [orders[position // len(self.images)][position % len(self.images)] for position in positions]
        reals = as_tensor(self.images[chosen])
        if self.mirror:
            draws = torch.Generator().manual_seed(derive_seed(self.seed, step, "mirror"))
            reals = mirrored(reals, torch.rand(len(reals), generator=draws) < 0.5)
        return reals

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(len(self.images))


def as_tensor(images: np.ndarray) -> Tensor:
    """Unsigned integers as float32 in [-1, 1]."""
    return torch.from_numpy(images.astype(np.float32)) / (np.iinfo(images.dtype).max / 2) - 1


def mirrored(images: Tensor, is_flipped: Tensor) -> Tensor:
    """``images`` (n, channels, height, width), those flipped from left to right where ``is_flipped`` (n,) says so."""
    images[is_flipped] = images[is_flipped].flip(3)
    return images


def check_images(images: np.ndarray, settings: GanSettings) -> None:
    """InputError unless ``images`` are at least two different ones of the plan's size and an integer type."""
    check_form(images, settings)
    if len(images) < 2 or all(np.array_equal(image, images[0]) for image in images):
        raise InputError(
            f"{len(images)} different training images", where="generator", fix="give the site at least two"
        )


def check_form(images: np.ndarray, settings: GanSettings) -> None:
    """InputError unless ``images`` are of the plan's size and an integer type, whatever they show."""
    expected = (settings.n_channels, *settings.image_size_px)
    fix = "write the slices again with this plan"
    if images.ndim != 4 or images.shape[1:] != expected:
        raise InputError(f"images {images.shape} are not (n, {expected})", where="generator", fix=fix)
    if images.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise InputError(f"images are {images.dtype}", where="generator", fix="store them as uint8 or uint16")
