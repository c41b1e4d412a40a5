"""Changes under which a copy is still a copy, in batches, for training the descriptor.

The groups follow copy detection (SSCD, Pizzi et al. 2022; DISC, Douze et al. 2021): geometry, parts hidden or shown in
another image, grey values, detail. They are not the kinds that the audit plants (``memorization/planted/copies.py``):
those measure, and share neither code nor parameters with these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from memorization.registration.maps import SIZE_PX, smooth

CELLS = 16  # descriptors per axis of an image
DARKEST = 1e-3  # a power of 0 has no derivative
N_SYMMETRIES = 8
OCCLUSIONS = 6  # of which hidden, shown in another image and blended are one each, and the rest leave all as it is


@dataclass(frozen=True, eq=False)
class Changed:
    """Copies, and where their cells come from."""

    pixels: torch.Tensor  # (b, 1, 64, 64) in [0, 1]
    source: torch.Tensor  # (b, CELLS, CELLS, 2): a cell's centre in the original, (x, y) with the borders at -1 and 1
    visible: torch.Tensor  # (b, CELLS, CELLS) True where the original is seen


class Draws:
    """Random numbers, one for each image of a batch; ``strength`` in [0, 1] scales how far changes go."""

    def __init__(self, n_images: int, strength: float, generator: torch.Generator) -> None:
        self.n_images, self.strength, self.generator = n_images, strength, generator

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """(b,), whatever the strength."""
        return low + (high - low) * torch.rand(self.n_images, generator=self.generator)

    def change(self, low: float, high: float, chance: float) -> torch.Tensor:
        """(b, 1, 1, 1) scaled by the strength; 0 but for a share ``chance`` of the images."""
        value = self.uniform(low, high) * self.strength * (self.uniform(0, 1) < chance)
        return value[:, None, None, None]

    def normal(self, *shape: int) -> torch.Tensor:
        """(b, *shape)."""
        return torch.randn(self.n_images, *shape, generator=self.generator)


def symmetry(pixels: torch.Tensor, number: int) -> torch.Tensor:
    """(b, 1, h, h) under one of the square's 8 symmetries; 0 leaves it alone."""
    mirrored = pixels.flip(3) if number >= N_SYMMETRIES // 2 else pixels
    return torch.rot90(mirrored, number % (N_SYMMETRIES // 2), (2, 3))


def changed(pixels: torch.Tensor, others: torch.Tensor, strength: float, generator: torch.Generator) -> Changed:
    """Copies of ``pixels`` (b, 1, 64, 64) in [0, 1], mixed with ``others``, as many."""
    draws = Draws(len(pixels), strength, generator)
    moved, grid = _moved(pixels, draws)
    shown = (grid.abs() <= 1).all(-1)
    mixed, shown = _mixed(moved, others, shown, draws)
    centres = slice(SIZE_PX // CELLS // 2, SIZE_PX, SIZE_PX // CELLS)
    return Changed(
        _detailed(_toned(mixed, draws), draws), grid[:, centres, centres], shown[:, centres, centres].contiguous()
    )


def _moved(pixels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned, scaled, stretched, shifted and bent; the border's median lies beyond the edge."""
    angle, scale, stretch, slope, right, down = (
        draws.change(*limits)[:, 0, 0, 0]
        for limits in (
            (-0.7, 0.7, 0.6),
            (-0.6, 0.4, 0.7),
            (-0.2, 0.2, 0.5),
            (-0.2, 0.2, 0.3),
            (-0.4, 0.4, 0.6),
            (-0.4, 0.4, 0.6),
        )
    )
    cos, sin, wide, high = angle.cos(), angle.sin(), (scale + stretch).exp(), (scale - stretch).exp()
    rows = torch.stack([cos * wide, -sin * high + slope, sin * wide, cos * high], 1).view(-1, 2, 2)
    line = torch.linspace(-1, 1, SIZE_PX)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.einsum("bij,hwj->bhwi", rows, torch.stack([x, y], -1)) + torch.stack([right, down], 1)[:, None, None]
    bends = draws.normal(2, 6, 6) * draws.change(0.0, 0.09, 0.6)
    grid = grid + F.interpolate(bends, size=(SIZE_PX, SIZE_PX), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    edges = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], -1)
    beyond = edges.median(-1).values[..., None, None]
    return F.grid_sample(pixels - beyond, grid, align_corners=True) + beyond, grid


def _mixed(
    pixels: torch.Tensor, others: torch.Tensor, shown: torch.Tensor, draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some hidden by a grey rectangle, some seen in a rectangle of another image, some blended with one."""
    kind = (draws.uniform(0, OCCLUSIONS) / max(draws.strength, 1e-6)).long()[:, None, None]
    hidden = (kind == 0) & _rectangles(draws.uniform(0.05, 0.5), draws)
    covered = (kind == 1) & ~_rectangles(draws.uniform(0.08, 0.5), draws)
    share = (draws.uniform(0, 0.4) * (kind[:, 0, 0] == 2))[:, None, None, None]
    grey = draws.uniform(0, 1)[:, None, None, None]
    mixed = torch.where(hidden[:, None], grey, (1 - share) * pixels + share * others)
    return torch.where(covered[:, None], others, mixed), shown & ~hidden & ~covered


def _rectangles(area: torch.Tensor, draws: Draws) -> torch.Tensor:
    """(b, 64, 64) True inside a rectangle of a share ``area`` (b,) of the image."""
    aspect = draws.uniform(-0.3, 0.3).exp()
    inside = []
    for side in ((area.sqrt() * aspect).clamp_max(1), (area.sqrt() / aspect).clamp_max(1)):
        start = draws.uniform(0, 1) * (1 - side)
        line = (torch.arange(SIZE_PX) + 0.5) / SIZE_PX
        inside.append((line >= start[:, None]) & (line < (start + side)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None]


def _toned(pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Gamma, shading, contrast, brightness. Whoever compares tries the negative: nothing need be learned for it."""
    line = torch.linspace(-1, 1, SIZE_PX)
    shade = draws.change(-0.7, 0.7, 0.4) * line + draws.change(-0.7, 0.7, 0.4) * line[:, None]
    shaded = pixels.clamp(DARKEST, 1) ** draws.change(-0.9, 0.9, 0.5).exp() * shade.exp()
    mean = shaded.mean((2, 3), keepdim=True)
    return ((shaded - mean) * draws.change(-1.0, 0.7, 0.5).exp() + mean + draws.change(-0.25, 0.25, 0.5)).clamp(0, 1)


def _detailed(pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Blurred or sharpened, noisy, of fewer grey levels."""
    sigma_px = 4.0 ** float(torch.rand((), generator=draws.generator))  # one for the batch: a kernel each would be slow
    amount = torch.where(draws.uniform(0, 1)[:, None, None, None] < 0.7, 1.0, -1.5)
    softened = (draws.uniform(0.4, 1) * (draws.uniform(0, 1) < 0.4 * draws.strength))[:, None, None, None]
    blurred = pixels + softened * amount * (smooth(pixels, sigma_px) - pixels)
    noisy = blurred + draws.change(0, 0.12, 0.5) * draws.normal(*pixels.shape[1:])
    step = draws.change(0.004, 0.12, 0.2).clamp_min(1 / 255)
    return ((noisy / step).round() * step).clamp(0, 1)
