"""The descriptor: a small convolutional network, a unit vector for each of 16 x 16 cells and one for the image."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from memorization.registration.maps import LEAST_CONTRAST, SIZE_PX

WIDTH, CELL_SIZE, IMAGE_SIZE = 48, 48, 128
N_BLOCKS = 3
BANDS_PX = ((0.7, 2.0, 5.0), (1.5, 5.0, 9.0))  # fine and coarse end, window of the local size
LEAST_SPREAD = 0.05  # of the range of grey values
REGIONS = 4  # per axis, of which the image's vector is made: it knows where things are


class CopyNetwork(nn.Module):
    """(b, 1, 64, 64) in [0, 1] -> cells (b, CELL_SIZE, 16, 16) and images (b, IMAGE_SIZE), all of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolved(3, WIDTH // 2, 5, 2), *_convolved(WIDTH // 2, WIDTH, 3, 2))
        self.blocks = nn.ModuleList([nn.Sequential(*_convolved(WIDTH, WIDTH, 3, 1)) for _ in range(N_BLOCKS)])
        self.cells = nn.Conv2d(WIDTH, CELL_SIZE, 1)
        self.image = nn.Linear(WIDTH * REGIONS**2, IMAGE_SIZE)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Local normalisation first: brightness, contrast and shading need not be learned."""
        seen = self.stem(_normalised(pixels))
        for block in self.blocks:
            seen = seen + block(seen)
        pooled = F.avg_pool2d(seen, seen.shape[-1] // REGIONS).flatten(1)
        return F.normalize(self.cells(seen), dim=1), F.normalize(self.image(pooled), dim=1)


def _convolved(n_in: int, n_out: int, side: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, side, stride, side // 2, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    """The image in its own spreads, and two bands of detail in local ones."""
    mean, spread = pixels.mean((2, 3), keepdim=True), pixels.std((2, 3), keepdim=True)
    channels = [(pixels - mean) / (spread + LEAST_SPREAD)]
    for fine_px, coarse_px, window_px in BANDS_PX:
        detail = _smooth(pixels, fine_px) - _smooth(pixels, coarse_px)
        channels.append(detail / torch.sqrt(_smooth(detail * detail, window_px) + LEAST_CONTRAST**2))
    return torch.cat(channels, 1)


def _smooth(pixels: torch.Tensor, sigma_px: float) -> torch.Tensor:
    """Gaussian as two matrix products: at 64 px a tenth of the time of one-channel convolutions."""
    matrix = _gaussian(sigma_px)
    return matrix @ pixels @ matrix.T


@cache
def _gaussian(sigma_px: float) -> torch.Tensor:
    """(64, 64), rows of sum 1: beyond the border there is nothing to average."""
    line = torch.arange(SIZE_PX, dtype=torch.float32)
    weights = torch.exp(-((line[:, None] - line) ** 2) / (2 * sigma_px**2))
    return weights / weights.sum(1, keepdim=True)
