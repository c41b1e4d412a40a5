"""DiffAugment: the same differentiable augmentations on every image the discriminator sees (Zhao et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.batch_shard import SINGLE_PROCESS, BatchShard

TRANSLATION = 0.125  # of each side, at most
CUTOUT = 0.5  # of each side
NUMBERS_OF = {"color": 3, "translation": 2, "cutout": 2}  # that each draws for an image

Uniform = Callable[[], Tensor]  # one number of [0, 1) an image


def augment(
    images: Tensor, names: Sequence[str], generator: torch.Generator, shard: BatchShard = SINGLE_PROCESS
) -> Tensor:
    """Apply the named augmentations in order; ``generator`` (on the CPU) draws one set of parameters per image.

    Args:
        images: (b, channels, height, width), about [-1, 1].
        names: out of ``color``, ``translation`` and ``cutout``.
        shard: parameters are drawn for the whole batch, of which ``images`` are this process's share.
    """

    def uniform() -> Tensor:
        return shard.of(torch.rand(len(images) * shard.n_processes, generator=generator)).to(images.device)

    return _augmented(images, names, uniform)


def n_numbers(names: Sequence[str]) -> int:
    """How many random numbers these augmentations draw for an image."""
    return sum(NUMBERS_OF[name] for name in names)


def augment_by(images: Tensor, names: Sequence[str], numbers: Tensor) -> Tensor:
    """As ``augment``, with the numbers of every image given: (b, ``n_numbers(names)``) of [0, 1]."""
    columns = iter(numbers.to(images.device).unbind(dim=1))
    return _augmented(images, names, lambda: next(columns))


def _augmented(images: Tensor, names: Sequence[str], uniform: Uniform) -> Tensor:
    for name in names:
        images = _AUGMENTATIONS[name](images, uniform)
    return images


def _per_image(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]


def _color(images: Tensor, uniform: Uniform) -> Tensor:
    """Brightness +-0.5, saturation x 0 to 2 (nothing to do on one channel), contrast x 0.5 to 1.5."""
    images = images + (_per_image(uniform()) - 0.5)
    saturation = 2 * _per_image(uniform())
    if images.shape[1] > 1:
        grey = images.mean(dim=1, keepdim=True)
        images = (images - grey) * saturation + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_per_image(uniform()) + 0.5) + mean


def _translation(images: Tensor, uniform: Uniform) -> Tensor:
    """Shift by whole pixels up to an eighth of each side, zeros moving in."""
    n_images, _, height, width = images.shape
    reach = [int(size * TRANSLATION + 0.5) for size in (height, width)]
    starts = [_whole(uniform(), 2 * r + 1)[:, None] for r in reach]  # 0: moved down or right by the reach
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows = torch.arange(height, device=images.device) + starts[0]
    columns = torch.arange(width, device=images.device) + starts[1]
    batch = torch.arange(n_images, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, uniform: Uniform) -> Tensor:
    """Zero one rectangle of half the height and half the width; its centre is anywhere in the image."""
    inside = []
    for size in images.shape[-2:]:
        length = int(size * CUTOUT + 0.5)
        start = _whole(uniform(), size + 1 - length % 2)[:, None] - length // 2
        positions = torch.arange(size, device=images.device)
        inside.append((positions >= start) & (positions < start + length))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images * (~hole).to(images.dtype)


def _whole(uniform: Tensor, n: int) -> Tensor:
    """Uniform numbers of [0, 1) as whole ones of 0 to ``n`` - 1."""
    return (uniform * n).long().clamp_max(n - 1)


_AUGMENTATIONS = {"color": _color, "translation": _translation, "cutout": _cutout}
