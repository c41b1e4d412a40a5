"""Images as the comparison sees them: one grey channel of 64 px, in bands of detail, locally normalised.

Local normalisation (divide a band by its own local size) makes brightness, contrast, gamma, shading and window settings
fall away; the sign that is left for a negative is tried both ways by whoever compares.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SIZE_PX = 64  # images are compared at this size, whatever theirs is
LEAST_CONTRAST = 0.01  # of the range of grey values: structure below it is not amplified


def grey(images: np.ndarray) -> torch.Tensor:
    """(n, channels, height, width) uint8 or uint16 -> (n, 1, SIZE_PX, SIZE_PX) float32 in [0, 1]."""
    import torch
    from torch.nn import functional as F

    mean = images.mean(axis=1, keepdims=True, dtype=np.float32) / np.iinfo(images.dtype).max
    pixels = torch.from_numpy(mean.astype(np.float32))
    if pixels.shape[-2:] == (SIZE_PX, SIZE_PX):
        return pixels
    return F.interpolate(pixels, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False, antialias=True)


def smooth(x: torch.Tensor, sigma_px: float) -> torch.Tensor:
    """Gaussian of (n, 1, h, w) with the border repeated; 0 leaves it alone."""
    if sigma_px <= 0:
        return x
    return _gaussian(x.shape[-2], sigma_px) @ (x @ _gaussian(x.shape[-1], sigma_px).T)


def pooled(x: torch.Tensor, window: int, n_places: int) -> torch.Tensor:
    """Means of (n, 1, s, s) over windows round n_places x n_places samples, of what of them is inside the image."""
    matrix = _windows(x.shape[-1], window, n_places)
    return matrix @ (x @ matrix.T)


@cache
def _gaussian(size: int, sigma_px: float) -> torch.Tensor:
    """(size, size): smoothing along an axis as a product, which is several times faster than a convolution here."""
    import torch

    reach = min(max(1, math.ceil(3 * sigma_px)), size - 1)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(offsets.float() ** 2) / (2 * sigma_px**2))
    source = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    return torch.zeros(size, size).scatter_add_(1, source, (kernel / kernel.sum()).expand(size, -1))


@cache
def _windows(size: int, window: int, n_places: int) -> torch.Tensor:
    """(n_places, size): means over windows along an axis."""
    import torch

    middle = torch.arange(n_places)[:, None] * (size // n_places)
    inside = ((torch.arange(size) - middle).abs() <= window // 2).float()
    return inside / inside.sum(1, keepdim=True)


def band(x: torch.Tensor, fine_px: float, coarse_px: float) -> torch.Tensor:
    """What lies between two Gaussians (a difference of Gaussians)."""
    return smooth(x, fine_px) - smooth(x, coarse_px)


def locally_normalised(x: torch.Tensor, fine_px: float, coarse_px: float, window_px: float) -> torch.Tensor:
    """A band divided by its root mean square nearby."""
    import torch

    detail = band(x, fine_px, coarse_px)
    return detail / torch.sqrt(smooth(detail * detail, window_px) + LEAST_CONTRAST**2)


def halved(x: torch.Tensor) -> torch.Tensor:
    """Half the size, by means of 2 x 2."""
    from torch.nn import functional as F

    return F.avg_pool2d(x, 2)


def low_map(x: torch.Tensor) -> torch.Tensor:
    """(n, 1, 64, 64) -> (n, 1, 32, 32): structures of 3 to 9 px, for finding and first alignment."""
    return locally_normalised(halved(x), 0.8, 2.2, 3.0)


def middle_map(x: torch.Tensor) -> torch.Tensor:
    """(n, 1, 64, 64), same size: structures of 2 to 5 px, for local search and last alignment."""
    return locally_normalised(x, 0.8, 2.4, 5.0)


def warped(x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images seen from a reference: value at ``u`` is that of ``x`` at ``matrix u + shift``.

    Args:
        x: (n, c, h, w); matrix: (n, 2, 2); shift: (n, 2); coordinates (x, y) with the borders at -1 and 1.

    Returns:
        (n, c, size, size), and where the image was (n, 1, size, size), 0 or 1.
    """
    import torch

    line = torch.linspace(-1, 1, size)
    along_x = matrix[:, :, 0, None] * line + shift[:, :, None]
    along_y = matrix[:, :, 1, None] * line
    return _sampled(x, along_x[:, :, None, :] + along_y[:, :, :, None])


def displaced(
    x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, field: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same at ``matrix (u + field) + shift``; ``field`` (n, 2, size, size), (x, y) in samples."""
    import torch

    size = field.shape[-1]
    line = torch.linspace(-1, 1, size)
    at_x = line + field[:, 0] * 2 / (size - 1)
    at_y = line[:, None] + field[:, 1] * 2 / (size - 1)
    columns = matrix[:, :, :, None, None]
    return _sampled(x, columns[:, :, 0] * at_x[:, None] + columns[:, :, 1] * at_y[:, None] + shift[:, :, None, None])


def box_mean(x: torch.Tensor, window: int) -> torch.Tensor:
    """Mean of (n, c, h, w) over the part inside the image of windows of 2 k + 1 samples."""
    import torch
    from torch.nn import functional as F

    half = window // 2
    sums = _running_sum(_running_sum(F.pad(x, (half, half, half, half)), 3, window), 2, window)
    height, width = (_running_sum(F.pad(torch.ones(n), (half, half)), 0, window) for n in x.shape[-2:])
    return sums * (1 / (height[:, None] * width))


def _running_sum(x: torch.Tensor, dim: int, window: int) -> torch.Tensor:
    """Sums of ``window`` neighbours, by doubling: a few additions, whatever the window."""
    total: torch.Tensor | None = None
    power, width, taken = x, 1, 0
    n_sums = x.shape[dim] - window + 1
    while width <= window:
        if window & width:
            part = power.narrow(dim, taken, n_sums)
            total, taken = part if total is None else total + part, taken + width
        power = power.narrow(dim, 0, power.shape[dim] - width) + power.narrow(dim, width, power.shape[dim] - width)
        width *= 2
    assert total is not None
    return total


def _sampled(x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``places`` (n, 2, h, w): (x, y)."""
    from torch.nn import functional as F

    inside = ((places[:, 0].abs() <= 1) & (places[:, 1].abs() <= 1))[:, None].to(x.dtype)
    return F.grid_sample(x, places.permute(0, 2, 3, 1), align_corners=True, padding_mode="border"), inside
