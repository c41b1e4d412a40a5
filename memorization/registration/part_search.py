"""Where a part of an image may have come from: small cells, and the shifts they agree on.

A pasted lesion, or what a crop left, is a handful of cells that all point to one reference by one shift; cells that
match by chance do not agree. Cells are compared in their standard form, so that a mirrored, turned or negative part
costs no more to find than a plain one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memorization.registration.cells import FLAT_NORM, Cells, forms, relative_forms, standard
from memorization.registration.maps import SIZE_PX, halved, locally_normalised, warped
from memorization.registration.poses import Poses
from memorization.registration.shared_places import shared_places, unshared

if TYPE_CHECKING:
    import torch

LEAST_CORRELATION = 0.65
WINDOW_PX = 5.0  # of the local normalisation
BIN = 2.0  # samples of shift that count as one
BLOCK = 2  # references at once: their matches stay in the cache
SPAN = 160  # bins of shift per axis, more than any shift needs


@dataclass(frozen=True)
class Look:
    """The map that cells are cut from, and which cells.

    ``cell``: samples per side. ``query_stride``, ``reference_stride``: samples between cells; either stands at every
    sample, the one that is cheaper. ``phases_px``: shifts of the query, as one by an odd number of pixels may fall
    between the samples. ``scales``: of the copy, tried besides 1, in one phase only.
    """

    px_per_sample: int
    band_px: tuple[float, float]
    cell: int
    query_stride: int
    reference_stride: int
    phases_px: tuple[tuple[int, int], ...] = ((0, 0),)
    scales: tuple[float, ...] = ()

    @property
    def n_samples(self) -> int:
        """Per axis of the map."""
        return SIZE_PX // self.px_per_sample

    def map_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 1, 64, 64) -> (n, 1, n_samples, n_samples): structures that different patients do not share."""
        normalised = locally_normalised(pixels, *self.band_px, WINDOW_PX)
        return normalised if self.px_per_sample == 1 else halved(normalised)

    def middles(self, stride: int) -> torch.Tensor:
        """(cells, 2): (x, y) of their middles; samples lie in the middles of their pixels, borders at -1 and 1."""
        import torch

        samples = torch.arange(0, self.n_samples - self.cell + 1, stride) + self.cell / 2
        rows, columns = torch.meshgrid(samples, samples, indexing="ij")
        return torch.stack([columns, rows], -1).reshape(-1, 2) * 2 / self.n_samples - 1


MIDDLE = Look(2, (0.5, 1.8), 7, 2, 1, phases_px=((0, 0), (0, 1), (1, 0), (1, 1)), scales=(1.35, 1.75, 0.75))
FINE = Look(1, (0.0, 1.2), 10, 1, 6)  # for parts too small for the other look, of copies that keep all detail


class PartSearch:
    """The references, cut into cells."""

    def __init__(self, pixels: torch.Tensor, look: Look) -> None:
        maps, stride = look.map_of(pixels), look.reference_stride
        cut = _cut(maps, look, stride)
        cells = standard(cut.flatten(0, 1))
        self._look, self._middles = look, look.middles(stride)
        self._values = cells.values.view(cut.shape)
        self._form, self._sign = cells.form.view(cut.shape[:2]), cells.sign.view(cut.shape[:2])
        self._shared = shared_places(len(maps), lambda these, others: _alike(maps[these], maps[others], look, stride))
        self._forms, self._relative = forms(), relative_forms()

    def votes(
        self, pixels: torch.Tensor, query: int, n_poses: int, chosen: torch.Tensor, allowed: torch.Tensor
    ) -> Poses:
        """The best poses of one image (1, 1, 64, 64) over the ``chosen`` of the references ``allowed`` (n,).

        None where nothing matches; what several of the allowed show at one place matches nothing.
        """
        import torch

        look, n_forms = self._look, len(self._forms)
        cells, middle, scale = _query_cells(pixels, look)
        row, column, value = self._matching(cells.values, chosen, allowed)
        form = self._relative[cells.form[row], self._form[chosen].flatten()[column]]
        negative = (value * cells.sign[row] * self._sign[chosen].flatten()[column] < 0).long()
        reference, place = column // len(self._middles), column % len(self._middles)
        in_frame = torch.einsum("bji,bj->bi", self._forms[form], middle[row])  # the inverse is the transpose
        shift = self._middles[place] - in_frame
        binned = (shift * (look.n_samples - 1) / 2 / BIN).round().long() + SPAN // 2
        kind = (scale[row] * 2 + negative) * n_forms + form
        key = (kind * len(chosen) + reference) * SPAN**2 + binned[:, 1] * SPAN + binned[:, 0]
        key, member = key.unique(return_inverse=True)
        excess = (value.abs() - LEAST_CORRELATION) / (1 - LEAST_CORRELATION)
        excess /= torch.sqrt(torch.bincount(row)[row] * torch.bincount(column)[column])  # an edge matches any edge
        best = _sum_over_cells(member, row, len(middle), excess, len(key)).topk(min(n_poses, len(key))).indices
        total = torch.zeros(len(key)).index_add_(0, member, excess)
        mean = torch.zeros(len(key), 2).index_add_(0, member, shift * excess[:, None]) / total[:, None]
        kind, reference = key[best] // SPAN**2 // len(chosen), chosen[key[best] // SPAN**2 % len(chosen)]
        factor = torch.tensor((1.0, *look.scales))[kind // n_forms // 2]
        matrix = factor[:, None, None] * self._forms[kind % n_forms]
        sign = 1.0 - 2.0 * (kind // n_forms % 2)
        moved_px = (mean[best] * SIZE_PX / 2).round()  # a pasted part moves by whole pixels; alignment does the rest
        shift = -torch.einsum("bij,bj->bi", matrix, moved_px * 2 / (SIZE_PX - 1))
        return Poses(torch.full_like(reference, query), reference, sign, matrix, shift)

    def _matching(
        self, cells: torch.Tensor, chosen: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cell, the position among all cells of the ``chosen`` references, and the correlation of what matches."""
        import torch

        blocks = []
        for start in range(0, len(chosen), BLOCK):
            values = self._values[chosen[start : start + BLOCK]]
            row, column, value = _above(cells @ values.flatten(0, 1).T)
            blocks.append((row, column + start * len(self._middles), value))
        row, column, value = (torch.cat(part) for part in zip(*blocks, strict=True))
        value = value * unshared(self._shared.among(chosen, allowed.expand(len(chosen), -1))).flatten()[column]
        counts = value.abs() > LEAST_CORRELATION
        return row[counts], column[counts], value[counts]


def coarse_cells(pixels: torch.Tensor) -> torch.Tensor:
    """(n, cells, size) of images on their own, in standard form, of a coarse grid."""
    cells = _cut(MIDDLE.map_of(pixels), MIDDLE, MIDDLE.query_stride)
    return standard(cells.flatten(0, 1)).values.view(cells.shape)


def _cut(maps: torch.Tensor, look: Look, stride: int) -> torch.Tensor:
    from torch.nn import functional as F

    return F.unfold(maps, look.cell, stride=stride).permute(0, 2, 1)


def _alike(these: torch.Tensor, others: torch.Tensor, look: Look, stride: int) -> torch.Tensor:
    """(n, cells): correlation of the cells of two sets of maps, place by place."""
    import torch
    from torch.nn import functional as F

    def energy(product: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(product, look.cell, stride) * look.cell**2

    both = torch.sqrt((energy(these * these) + FLAT_NORM**2) * (energy(others * others) + FLAT_NORM**2))
    correlation: torch.Tensor = energy(these * others) / both
    return correlation.flatten(1)


def _query_cells(pixels: torch.Tensor, look: Look) -> tuple[Cells, torch.Tensor, torch.Tensor]:
    """Cells, their middles (c, 2) with borders at -1 and 1, and the number of the scale each was cut at (c,)."""
    import torch

    views = [(pixels.roll((-down, -right), (2, 3)), 0, (right, down)) for down, right in look.phases_px]
    for number, scale in enumerate(look.scales):
        seen, inside = warped(pixels, torch.eye(2)[None] * scale, torch.zeros(1, 2), SIZE_PX)
        views.append((seen * inside, 1 + number, (0, 0)))
    middles = look.middles(look.query_stride)
    margin = look.cell / look.n_samples
    cells, places, scales = [], [], []
    for view, scale_number, offset in views:
        cut = _cut(look.map_of(view), look, look.query_stride)[0]
        moved = middles + torch.tensor(offset) * 2 / SIZE_PX
        covered = 1 / (1.0, *look.scales)[scale_number]
        reach = min(1.0, covered) - margin + 1e-6  # a whole cell fits in; a shifted view wraps round at its far border
        fits = (moved.abs() <= reach).all(1)
        cells.append(cut[fits])
        places.append(moved[fits])
        scales.append(torch.full((int(fits.sum()),), scale_number))
    return standard(torch.cat(cells)), torch.cat(places), torch.cat(scales)


def _above(response: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and value of what matches."""
    import torch

    matches = torch.from_numpy(
        np.flatnonzero(np.abs(response.numpy()) > LEAST_CORRELATION)
    )  # torch takes 4 times as long
    n_columns = response.shape[1]
    return matches // n_columns, matches % n_columns, response.flatten()[matches]


def _sum_over_cells(
    member: torch.Tensor, cell: torch.Tensor, n_cells: int, excess: torch.Tensor, n_keys: int
) -> torch.Tensor:
    """Per key the sum over cells, each with its best match once."""
    import torch

    pair, position = (member * n_cells + cell).unique(return_inverse=True)
    best = torch.zeros(len(pair)).scatter_reduce_(0, position, excess, "amax")
    return torch.zeros(n_keys).index_add_(0, pair // n_cells, best)
