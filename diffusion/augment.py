"""Augmentations the denoiser is told of, so that it does not show them when it samples (Karras et al. 2022, app. F.2).

Each image is changed by each of them with probability ``SHARE``; the numbers say how, and are 0 where nothing was
done, which is what sampling asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SHARE = 0.5
TRANSLATION = 0.125  # of each side, at most
SCALE = 0.2  # factor 2 to the power of +- this
BRIGHTNESS = 0.2  # of the range from -1 to 1, at most


def n_augment_numbers(names: Sequence[str], n_axes: int) -> int:
    """How many numbers say how an image was changed."""
    return sum(n_axes if name == "translation" else 1 for name in names)


def augment(
    batch: Tensor, names: Sequence[str], n_image_channels: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``(changed, told)``: the batch (b, channels, ...) in [-1, 1], and (b, numbers), each about -1 to 1.

    Labels, the channels after ``n_image_channels``, move with the image and keep their values; borders are repeated.
    ``draws`` is a generator of the batch's device that draws for the whole batch.
    """
    n_images, n_axes = len(batch), batch.ndim - 2

    def numbers(n: int) -> Tensor:
        values = torch.rand(n_images, n, generator=draws) * 2 - 1
        is_changed = torch.rand(n_images, 1, generator=draws) < SHARE
        return values * is_changed

    drawn = {name: numbers(n_axes if name == "translation" else 1) for name in names}
    if "translation" in drawn or "scale" in drawn:
        shift = drawn.get("translation", torch.zeros(n_images, n_axes)) * 2 * TRANSLATION
        zoom = torch.exp2(drawn.get("scale", torch.zeros(n_images, 1)) * SCALE)
        matrices = torch.cat([torch.eye(n_axes)[None] * zoom[:, :, None], shift[:, :, None]], 2)
        grid = F.affine_grid(matrices.to(batch), list(batch.shape), align_corners=False)
        moved = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
        is_moved = ((shift != 0).any(1) | (zoom[:, 0] != 1)).to(batch.device)
        batch = torch.where(is_moved.reshape(-1, *[1] * (batch.ndim - 1)), moved, batch)
    if "brightness" in drawn:
        change = (drawn["brightness"] * BRIGHTNESS).to(batch).reshape(-1, *[1] * (batch.ndim - 1))
        image = (batch[:, :n_image_channels] + change).clamp(-1, 1)
        batch = torch.cat([image, batch[:, n_image_channels:]], 1)
    return batch, torch.cat([drawn[name] for name in names], 1).to(batch)
