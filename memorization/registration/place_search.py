"""Which reference an image lies over as it is, or mirrored or turned by quarters: no shift, so everything is compared.

Two looks: thumbnails, as a heavily blurred copy still has its coarse structure everywhere; and small cells one by one,
as a copy of which only a margin is left still has that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memorization.registration.maps import SIZE_PX, halved, middle_map, smooth, warped
from memorization.registration.poses import Poses, symmetries

if TYPE_CHECKING:
    import torch

THUMBNAIL_SIGMA_PX = 3.0
CELL, STRIDE = 4, 2  # samples of 2 px
LEAST_CORRELATION = 0.5
FLAT_NORM = 0.5


class PlaceSearch:
    """The references' thumbnails and cells."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self._thumbnails = _thumbnails(pixels)
        self._cells = _cells(pixels)
        self._symmetries = symmetries()

    def votes(self, pixels: torch.Tensor, query: int, n_poses: int, allowed: torch.Tensor) -> list[Poses]:
        """The ``n_poses`` best of one image (1, 1, 64, 64) by either look, of the references ``allowed`` (n,)."""
        import torch

        n_symmetries = len(self._symmetries)
        none = torch.zeros(n_symmetries, 2)
        seen, _ = warped(pixels.expand(n_symmetries, -1, -1, -1), self._symmetries, none, SIZE_PX)
        thumbnails = _thumbnails(seen) @ self._thumbnails.T  # (8, n)
        local = torch.einsum("scd,ncd->snc", _cells(seen), self._cells)
        agreeing = (local.abs() - LEAST_CORRELATION).clamp_min(0) * local.sign()
        return [self._best(alike, query, n_poses, allowed) for alike in (thumbnails, agreeing.sum(2))]

    def _best(self, alike: torch.Tensor, query: int, n_poses: int, allowed: torch.Tensor) -> Poses:
        import torch

        strength = torch.where(allowed, alike.abs(), -1.0)  # below 0, what nothing agrees with
        best = strength.flatten().topk(min(n_poses, alike.numel())).indices
        turn, reference = best // alike.shape[1], best % alike.shape[1]
        sign = torch.where(alike.flatten()[best] < 0, -1.0, 1.0)
        return Poses(
            torch.full_like(reference, query), reference, sign, self._symmetries[turn], torch.zeros(len(best), 2)
        )


def _thumbnails(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 256) unit vectors of the smoothed images."""
    flat = halved(halved(smooth(pixels, THUMBNAIL_SIGMA_PX))).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / (flat.norm(dim=1, keepdim=True) + 1e-6)


def _cells(pixels: torch.Tensor) -> torch.Tensor:
    """(n, cells, CELL * CELL), of length about 1, or less without structure."""
    from torch.nn import functional as F

    cells = F.unfold(halved(middle_map(pixels)), CELL, stride=STRIDE).permute(0, 2, 1)
    cells = cells - cells.mean(2, keepdim=True)
    return cells / (cells.norm(dim=2, keepdim=True) + FLAT_NORM)
