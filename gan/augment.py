"""DiffAugment: the same differentiable augmentations on every image the discriminator sees (Zhao et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TRANSLATION = 0.125  # of each side, at most
CUTOUT = 0.5  # of each side


def augment(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Apply the named augmentations in order; ``generator`` (on the CPU) draws one set of parameters per image.

    Args:
        images: (b, channels, height, width), about [-1, 1].
        names: out of ``color``, ``translation`` and ``cutout``.
    """
    for name in names:
        images = _AUGMENTATIONS[name](images, generator)
    return images


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)


def _color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness +-0.5, saturation x 0 to 2 (nothing to do on one channel), contrast x 0.5 to 1.5."""
    images = images + (_uniform(images, generator) - 0.5)
    saturation = 2 * _uniform(images, generator)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_uniform(images, generator) + 0.5) + mean


def _translation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by whole pixels up to an eighth of each side, zeros moving in."""
    n_images, _, height, width = images.shape
    reach = [int(height * TRANSLATION + 0.5), int(width * TRANSLATION + 0.5)]
    shifts = [torch.randint(-r, r + 1, (n_images,), generator=generator).to(images.device) for r in reach]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows = torch.arange(height, device=images.device)[None, :] + reach[0] + shifts[0][:, None]
    columns = torch.arange(width, device=images.device)[None, :] + reach[1] + shifts[1][:, None]
    batch = torch.arange(n_images, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zero one rectangle of half the height and half the width; its centre is anywhere in the image."""
    n_images, _, height, width = images.shape
    keep = torch.ones(n_images, 1, height, width)
    inside = []
    for size in (height, width):
        length = int(size * CUTOUT + 0.5)
        start = torch.randint(0, size + (1 - length % 2), (n_images,), generator=generator) - length // 2
        positions = torch.arange(size)[None, :]
        inside.append((positions >= start[:, None]) & (positions < start[:, None] + length))
    keep[(inside[0][:, None, :, None] & inside[1][:, None, None, :])] = 0
    return images * keep.to(images.device)


_AUGMENTATIONS = {"color": _color, "translation": _translation, "cutout": _cutout}
