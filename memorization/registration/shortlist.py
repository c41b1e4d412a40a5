"""Which references are worth a search at a site of many images: ranks by what costs little for each reference.

Two ranks, of which the best of each go on. *Rings*: magnitudes of angular harmonics on rings round a point, which no
turn, mirroring or sign changes; for whole images and large parts. *Cells*: the small cells of the search for parts, on
a coarse grid. At a site of at most ``SEARCHES_ALL_OF`` images everything is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from memorization.registration.maps import SIZE_PX, low_map, warped
from memorization.registration.part_search import LEAST_CORRELATION, coarse_cells

if TYPE_CHECKING:
    import torch

SEARCHES_ALL_OF = 96
N_RINGS, N_CELLS = 32, 32
SCALES = (0.6, 0.75, 1.0, 1.3, 1.7)
REACH = 6  # samples of the 32 x 32 map on each side: even, so that the grid is its own mirror image
RADII = (1.0, 2.2, 3.4, 4.6, 5.8)
N_HARMONICS = 5
WIDTH = 0.7
FLAT_NORM = 0.05
LEAST_COVERED = 0.6
BLOCK = 16  # references at once: their products stay in the cache


class Shortlist:
    """The references' rings and coarse cells."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.n_references = len(pixels)
        self.searches_all = len(pixels) <= SEARCHES_ALL_OF
        if self.searches_all:
            return
        rings = _rings(low_map(pixels), 2)
        self._mean = rings.mean((0, 1))
        self._rings = _centred(rings, self._mean)
        self._cells = coarse_cells(pixels)  # (n, cells, size)

    def choose(self, pixels: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Positions of the references worth searching for one image (1, 1, 64, 64), of those ``allowed`` (n,)."""
        import torch

        if self.searches_all:
            return allowed.nonzero()[:, 0]
        ranks = [(self._by_rings(pixels), N_RINGS), (self._by_cells(pixels), N_CELLS)]
        best = [torch.where(allowed, alike, -math.inf).topk(n_best).indices for alike, n_best in ranks]
        chosen = torch.cat(best).unique()
        return chosen[allowed[chosen]]

    def _by_rings(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n,): how many places of the image stand out as alike, at its best scale."""
        import torch
        from torch.nn import functional as F

        scales = torch.tensor(SCALES)
        still = torch.zeros(len(scales), 2)
        seen, inside = warped(
            pixels.expand(len(scales), -1, -1, -1), torch.eye(2) * scales[:, None, None], still, SIZE_PX
        )
        places = _centred(_rings(low_map(seen), 4), self._mean)
        covered = F.avg_pool2d(F.avg_pool2d(inside, 2), 2 * REACH, 4, 2).flatten(1) > LEAST_COVERED
        alike = _best_of_places(places.flatten(0, 1), self._rings, _largest).unflatten(0, places.shape[:2])
        standing_out = (alike - alike.mean(2, keepdim=True)).clamp_min(0).square() * covered[:, :, None]
        return (standing_out.sum(1) / covered.sum(1).clamp_min(4).sqrt()[:, None]).amax(0)

    def _by_cells(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n,): how well the image's cells match one of a reference's each."""
        best = _best_of_places(coarse_cells(pixels)[0], self._cells, _largest_of_either_sign)
        return (best - LEAST_CORRELATION).clamp_min(0).sum(0)


def _best_of_places(
    rows: torch.Tensor, references: torch.Tensor, best: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """(q, n): the ``best`` product over the places of references (n, places, d) with rows (q, d)."""
    import torch

    products = (rows @ block.flatten(0, 1).T for block in references.split(BLOCK))
    return torch.cat([best(product.unflatten(1, (-1, references.shape[1]))) for product in products], 1)


def _largest(products: torch.Tensor) -> torch.Tensor:
    return products.amax(2)


def _largest_of_either_sign(products: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.maximum(products.amax(2), -products.amin(2))


def _rings(maps: torch.Tensor, stride: int) -> torch.Tensor:
    """(n, 1, 32, 32) -> (n, places, radii x harmonics) of length about 1."""
    import torch
    from torch.nn import functional as F

    line = torch.arange(2 * REACH) - (REACH - 0.5)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    radius, angle = torch.hypot(rows, columns), torch.atan2(rows, columns)
    filters = []
    for ring in RADII:
        weight = torch.exp(-((radius - ring) ** 2) / (2 * WIDTH**2))
        weight = weight / weight.sum()
        for harmonic in range(N_HARMONICS):
            filters += [weight * torch.cos(harmonic * angle), weight * torch.sin(harmonic * angle)]
    parts = F.conv2d(maps, torch.stack(filters)[:, None], stride=stride, padding=2)
    rings = parts.unflatten(1, (-1, 2)).norm(dim=2).flatten(2).permute(0, 2, 1)
    return rings / (rings.norm(dim=2, keepdim=True) + FLAT_NORM)


def _centred(rings: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    rings = rings - mean
    return rings / (rings.norm(dim=-1, keepdim=True) + 1e-3)
