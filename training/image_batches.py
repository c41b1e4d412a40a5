"""The images of a step: which they are, how a network sees them, and what no training can use."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.plan import Size
from common.seeds import derive_seed


def items_of_step(n_items: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Which items the batch of ``step`` shows: each once before any is shown again, in a fresh order each time."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(n_items)
        for epoch in {position // n_items for position in positions}
    }
    return [int(orders[position // n_items][position % n_items]) for position in positions]


def integers_to_images(integers: np.ndarray) -> Tensor:
    """The whole range of uint8 or uint16 to [-1, 1]."""
    return torch.from_numpy(integers.astype(np.float32)) / (np.iinfo(integers.dtype).max / 2) - 1


def mirror_some(images: Tensor, step: int, seed: int) -> None:
    """Mirror about half of (n, channels, height, width) in place; which follows from seed and step."""
    draws = torch.Generator().manual_seed(derive_seed(seed, step, "mirror"))
    mirrored(images, torch.rand(len(images), generator=draws) < 0.5)


def mirrored(images: Tensor, is_flipped: Tensor) -> Tensor:
    """(n, channels, height, width), in place: those that ``is_flipped`` (n,) names, turned from left to right."""
    images[is_flipped] = images[is_flipped].flip(3)
    return images


def check_images(images: np.ndarray, n_channels: int, size: Size) -> None:
    """InputError unless ``images`` are at least two different ones of the plan's size and an integer type."""
    check_form(images, n_channels, size)
    if len(images) < 2 or all(np.array_equal(image, images[0]) for image in images):
        problem = f"{len(images)} different training images"
        raise InputError(problem, where="generator", fix="give the site at least two")


def check_form(images: np.ndarray, n_channels: int, size: Size) -> None:
    """InputError unless ``images`` are of the plan's size and an integer type, whatever they show."""
    expected, fix = (n_channels, *size), "write the slices again with this plan"
    if images.ndim != 4 or images.shape[1:] != expected:
        raise InputError(f"images {images.shape} are not (n, {expected})", where="generator", fix=fix)
    if images.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise InputError(f"images are {images.dtype}", where="generator", fix="store them as uint8 or uint16")
