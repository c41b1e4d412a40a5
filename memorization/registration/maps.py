"""Images as the comparison sees them: one grey channel of 64 px, in bands of detail, locally normalised.

Local normalisation (divide a band by its own local size) makes brightness, contrast, gamma, shading and window settings
fall away; the sign that is left for a negative is tried both ways by whoever compares.
"""

from __future__ import annotations

import math
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
    import torch
    from torch.nn import functional as F

    if sigma_px <= 0:
        return x
    reach = min(max(1, math.ceil(3 * sigma_px)), x.shape[-1] - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma_px**2))
    kernel /= kernel.sum()
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))


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
    return _sampled(x, places_of(size).expand(len(x), -1, -1, -1), matrix, shift)


def displaced(
    x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, field: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same at ``matrix (u + field) + shift``; ``field`` (n, 2, size, size), (x, y) in samples."""
    size = field.shape[-1]
    return _sampled(x, places_of(size) + field.permute(0, 2, 3, 1) * 2 / (size - 1), matrix, shift)


def places_of(size: int) -> torch.Tensor:
    """(size, size, 2): places (x, y) with the borders at -1 and 1."""
    import torch

    line = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns, rows], -1)


def _sampled(
    x: torch.Tensor, places: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch
    from torch.nn import functional as F

    grid = torch.einsum("bij,bhwj->bhwi", matrix, places) + shift[:, None, None]
    inside = (grid.abs() <= 1).all(-1)[:, None].to(x.dtype)
    return F.grid_sample(x, grid, align_corners=True, padding_mode="border"), inside
