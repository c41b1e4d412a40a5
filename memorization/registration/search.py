"""In which pose an image may lie over which reference: four searches, whose best votes are aligned afterwards.

``Shortlist`` names the references worth a search at a site of many images. ``WholeSearch`` finds whole images and large
parts, ``PlaceSearch`` copies that were not moved, ``PartSearch`` small parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from memorization.registration.agreement import shared_places, unshared
from memorization.registration.maps import (
    FLAT_NORM,
    SIZE_PX,
    Cells,
    Poses,
    forms,
    halved,
    locally_normalised,
    low_map,
    middle_map,
    smooth,
    standard,
    symmetries,
    turned,
    unit,
    warped,
)

TURNS_DEG = (-36, -18, 0, 18, 36)  # the steps between quarter turns; alignment does the rest
SCALES = (0.72, 0.85, 1.0, 1.17, 1.35, 1.75)  # of the copy: 1.75 is a crop of 57 % of the side


def _best_votes(strength: torch.Tensor, n_poses: int) -> torch.Tensor:
    return strength.flatten().topk(min(n_poses, strength.numel())).indices


GRID = SIZE_PX // 4  # the maps of the votes: 16 x 16 samples
WHOLE_CELL, CELLS_PER_AXIS = 6, 4  # samples (24 px) of a cell, and cells of the query
VOTES_BLOCK = 8  # references at once: their votes stay in the cache
LEAST_VALID, LEAST_NORM, WHOLE_FLAT_NORM = 0.75, 0.6, 0.3  # cells outside the image or without structure do not vote


class WholeSearch:
    """Coarse cells of the query vote for reference, orientation, scale and shift of the whole image.

    A cell's vote is its squared correlation with its sign: few cells that fit well outweigh many that half fit, and a
    negative has votes below 0. What is hidden, cut off or new in the query only takes votes away.
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        cells = unit(F.unfold(halved(low_map(pixels)), WHOLE_CELL), 1, WHOLE_FLAT_NORM)
        self._cells = cells.permute(0, 2, 1).contiguous()  # (n, positions, WHOLE_CELL * WHOLE_CELL)
        quarters = [(mirrored, number) for mirrored in (False, True) for number in range(4)]
        self._turns = torch.stack([turned(q, mirrored, degrees) for mirrored, q in quarters for degrees in TURNS_DEG])

    def votes(self, pixels: torch.Tensor, query: int, n_poses: int, chosen: torch.Tensor) -> Poses:
        """The ``n_poses`` best of one image (1, 1, 64, 64) over the ``chosen`` references."""
        side, n_turns = GRID - WHOLE_CELL + 1, len(self._turns)
        span = 2 * side - 1  # shifts per axis
        votes: list[list[torch.Tensor]] = []  # of every scale and block of references (shifts, block, turns)
        for scale in SCALES:
            # coarse maps (turns, 16, 16) of the image at this scale under every orientation, and where it covers them
            scaled, inside = warped(pixels, torch.eye(2)[None] * scale, torch.zeros(1, 2), SIZE_PX)
            layers = torch.cat([halved(low_map(scaled)), halved(halved(inside))], 1).expand(n_turns, -1, -1, -1)
            seen, inside = warped(layers, self._turns, torch.zeros(n_turns, 2), GRID)
            # cells (turns, cells, size), spread over what the image covers at this scale; those with structure vote
            margin = max(0.0, GRID - GRID / scale) / 2
            room = GRID - 2 * margin - WHOLE_CELL
            starts = [round(margin + room * part / (CELLS_PER_AXIS - 1)) for part in range(CELLS_PER_AXIS)]
            corners = [(top, left) for top in starts for left in starts]
            cells, valid = (
                torch.stack([x[:, i : i + WHOLE_CELL, j : j + WHOLE_CELL].flatten(1) for i, j in corners], 1)
                for x in (seen[:, 0], seen[:, 1] * inside[:, 0])
            )
            spread = (cells - cells.mean(2, keepdim=True)).norm(dim=2)
            weight = ((valid.mean(2) > LEAST_VALID) & (spread > LEAST_NORM)).float()
            cells = unit(cells, 2, WHOLE_FLAT_NORM) * weight[..., None]
            n_voting = weight.sum(1).clamp_min(4).sqrt()
            # a cell that fits the reference at a position votes for the shift between the two
            votes.append([])
            for block in chosen.split(VOTES_BLOCK):
                references = self._cells[block].permute(1, 0, 2).reshape(-1, WHOLE_CELL * WHOLE_CELL)
                total = torch.zeros(span, span, len(block), n_turns)
                for number, (top, left) in enumerate(corners):
                    response = references @ cells[:, number].T
                    response = response.mul_(response.abs()).view(side, side, len(block), n_turns)
                    total[side - 1 - top : 2 * side - 1 - top, side - 1 - left : 2 * side - 1 - left] += response
                votes[-1].append(total.flatten(0, 1).div_(n_voting))
        # the best by the most votes of all shifts (scales, 2, n, turns), as a copy and as a negative
        strength = torch.stack(
            [torch.cat([torch.stack([b.amax(0), -b.amin(0)]) for b in blocks], 1) for blocks in votes]
        )
        best = _best_votes(strength, n_poses)
        size, negative, reference, turn = torch.unravel_index(best, strength.shape)
        signs = 1.0 - 2.0 * negative
        found = zip(size.tolist(), reference.tolist(), turn.tolist(), signs, strict=True)
        place = torch.stack(
            [(votes[s][n // VOTES_BLOCK][:, n % VOTES_BLOCK, t] * sign).argmax() for s, n, t, sign in found]
        )
        samples = torch.stack([place % span, place // span], 1).float() - (side - 1)
        matrix = torch.tensor(SCALES)[size][:, None, None] * self._turns[turn]
        shift = -torch.einsum("bij,bj->bi", matrix, samples * (SIZE_PX // GRID) * 2 / (SIZE_PX - 1))
        return Poses(torch.full_like(reference, query), chosen[reference], signs, matrix, shift)


THUMBNAIL_SIGMA_PX = 3.0
PLACE_CELL, PLACE_STRIDE, PLACE_LEAST_CORRELATION = 4, 2, 0.5  # cells in samples of 2 px


class PlaceSearch:
    """References over which an image lies as it is, mirrored or turned by quarters, without a shift.

    By thumbnails, as a heavily blurred copy keeps its coarse structure everywhere; and by small cells one by one, as a
    copy of which only a margin is left keeps that margin.
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        self._thumbnails, self._cells = _thumbnails(pixels), _place_cells(pixels)
        self._symmetries = symmetries()

    def votes(self, pixels: torch.Tensor, query: int, n_poses: int, allowed: torch.Tensor) -> list[Poses]:
        """The ``n_poses`` best of one image (1, 1, 64, 64) by either, of the references ``allowed`` (n,)."""
        n_symmetries = len(self._symmetries)
        still = torch.zeros(n_symmetries, 2)
        seen, _ = warped(pixels.expand(n_symmetries, -1, -1, -1), self._symmetries, still, SIZE_PX)
        thumbnails = _thumbnails(seen) @ self._thumbnails.T  # (8, n)
        local = torch.einsum("scd,ncd->snc", _place_cells(seen), self._cells)
        agreeing = ((local.abs() - PLACE_LEAST_CORRELATION).clamp_min(0) * local.sign()).sum(2)
        found = []
        for alike in (thumbnails, agreeing):
            best = _best_votes(torch.where(allowed, alike.abs(), -1.0), n_poses)  # -1 is below what agrees with nothing
            turn, reference = best // alike.shape[1], best % alike.shape[1]
            sign = torch.where(alike.flatten()[best] < 0, -1.0, 1.0)
            still = torch.zeros(len(best), 2)
            found.append(Poses(torch.full_like(reference, query), reference, sign, self._symmetries[turn], still))
        return found


def _thumbnails(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 256) unit vectors of the smoothed images."""
    return unit(halved(halved(smooth(pixels, THUMBNAIL_SIGMA_PX))).flatten(1), 1, 1e-6)


def _place_cells(pixels: torch.Tensor) -> torch.Tensor:
    """(n, cells, PLACE_CELL * PLACE_CELL), of length about 1."""
    cells = F.unfold(halved(middle_map(pixels)), PLACE_CELL, stride=PLACE_STRIDE).permute(0, 2, 1)
    return unit(cells, 2, FLAT_NORM)


PART_LEAST_CORRELATION = 0.65
PART_WINDOW_PX = 5.0  # of the local normalisation
BIN = 2.0  # samples of shift that count as one
PARTS_BLOCK = 2  # references at once: their matches stay in the cache
SPAN = 160  # bins of shift per axis, more than any shift needs


@dataclass(frozen=True)
class Look:
    """The map that cells are cut from, and which cells.

    ``cell``: samples per side. ``query_stride``, ``reference_stride``: samples between cells; one of the two is 1.
    ``phases_px``: shifts of the query, as a shift by an odd number of pixels may fall between the samples. ``scales``:
    of the copy, tried besides 1, in one phase only.
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
        normalised = locally_normalised(pixels, *self.band_px, PART_WINDOW_PX)
        return normalised if self.px_per_sample == 1 else halved(normalised)

    def cut(self, maps: torch.Tensor, stride: int) -> torch.Tensor:
        """(n, cells, cell * cell) of maps."""
        return F.unfold(maps, self.cell, stride=stride).permute(0, 2, 1)

    def middles(self, stride: int) -> torch.Tensor:
        """(cells, 2): (x, y) of their middles; samples lie in the middles of their pixels, borders at -1 and 1."""
        samples = torch.arange(0, self.n_samples - self.cell + 1, stride) + self.cell / 2
        rows, columns = torch.meshgrid(samples, samples, indexing="ij")
        return torch.stack([columns, rows], -1).reshape(-1, 2) * 2 / self.n_samples - 1


MIDDLE = Look(2, (0.5, 1.8), 7, 2, 1, phases_px=((0, 0), (0, 1), (1, 0), (1, 1)), scales=(1.35, 1.75, 0.75))
FINE = Look(1, (0.0, 1.2), 10, 1, 6)  # for parts too small for the other look, of copies that keep all detail


class PartSearch:
    """Small cells of an image, and the shifts that they agree on.

    A pasted lesion, or what a crop left, is a handful of cells that all point to one reference by one shift; cells that
    match by chance do not agree.
    """

    def __init__(self, pixels: torch.Tensor, look: Look) -> None:
        maps, stride = look.map_of(pixels), look.reference_stride
        cut = look.cut(maps, stride)
        cells = standard(cut.flatten(0, 1))
        self._look, self._middles, self._forms = look, look.middles(stride), forms()
        self._values = cells.values.view(cut.shape)
        self._form, self._sign = cells.form.view(cut.shape[:2]), cells.sign.view(cut.shape[:2])
        # (8, 8): the form that leads from a reference's frame (second) to the query's (first), both in standard form
        products = torch.einsum("aij,bkj->abik", self._forms, self._forms)
        self._relative = (products[:, :, None] - self._forms).abs().sum((3, 4)).argmin(2)

        def energy(product: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(product, look.cell, stride) * look.cell**2

        def correlations(these: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
            """(b, cells) of the cells of two sets of references, place by place."""
            a, b = maps[these], maps[others]
            both = torch.sqrt((energy(a * a) + FLAT_NORM**2) * (energy(b * b) + FLAT_NORM**2))
            return (energy(a * b) / both).flatten(1)

        self._shared = shared_places(len(maps), correlations)

    def votes(
        self, pixels: torch.Tensor, query: int, n_poses: int, chosen: torch.Tensor, allowed: torch.Tensor
    ) -> Poses:
        """The best poses of one image (1, 1, 64, 64) over the ``chosen`` of the references ``allowed`` (n,).

        None where nothing matches. What several of the allowed references show at one place matches nothing.
        """
        look, n_forms = self._look, len(self._forms)
        cells, middle, scale = _query_cells(pixels, look)
        # cells of the query (row) that match a cell of all chosen references (column); value is their correlation
        found = []
        for start in range(0, len(chosen), PARTS_BLOCK):
            values = self._values[chosen[start : start + PARTS_BLOCK]]
            response = cells.values @ values.flatten(0, 1).T
            matches = np.flatnonzero(np.abs(response.numpy()) > PART_LEAST_CORRELATION)  # torch takes 4 times as long
            match, n_columns = torch.from_numpy(matches), response.shape[1]
            column = match % n_columns + start * len(self._middles)
            found.append((match // n_columns, column, response.flatten()[match]))
        row, column, value = (torch.cat(part) for part in zip(*found, strict=True))
        value = value * unshared(self._shared.among(chosen, allowed.expand(len(chosen), -1))).flatten()[column]
        counts = value.abs() > PART_LEAST_CORRELATION
        row, column, value = row[counts], column[counts], value[counts]
        # the pose that each match stands for: scale, sign, form, reference, and the shift in bins; one key a pose
        form = self._relative[cells.form[row], self._form[chosen].flatten()[column]]
        negative = (value * cells.sign[row] * self._sign[chosen].flatten()[column] < 0).long()
        reference, place = column // len(self._middles), column % len(self._middles)
        in_frame = torch.einsum("bji,bj->bi", self._forms[form], middle[row])  # the inverse is the transpose
        shift = self._middles[place] - in_frame
        binned = (shift * (look.n_samples - 1) / 2 / BIN).round().long() + SPAN // 2
        kind = (scale[row] * 2 + negative) * n_forms + form
        key = (kind * len(chosen) + reference) * SPAN**2 + binned[:, 1] * SPAN + binned[:, 0]
        key, member = key.unique(return_inverse=True)
        # votes: each cell of the query counts once for a pose, by its best match; an edge matches any edge
        excess = (value.abs() - PART_LEAST_CORRELATION) / (1 - PART_LEAST_CORRELATION)
        excess /= torch.sqrt(torch.bincount(row)[row] * torch.bincount(column)[column])
        pair, position = (member * len(middle) + row).unique(return_inverse=True)
        best_match = torch.zeros(len(pair)).scatter_reduce_(0, position, excess, "amax")
        strength = torch.zeros(len(key)).index_add_(0, pair // len(middle), best_match)
        best = _best_votes(strength, n_poses)
        # the mean shift of a pose's matches, by whole pixels as a pasted part moves; alignment does the rest
        total = torch.zeros(len(key)).index_add_(0, member, excess)
        mean = torch.zeros(len(key), 2).index_add_(0, member, shift * excess[:, None]) / total[:, None]
        kind, reference = key[best] // SPAN**2 // len(chosen), chosen[key[best] // SPAN**2 % len(chosen)]
        factor = torch.tensor((1.0, *look.scales))[kind // n_forms // 2]
        matrix = factor[:, None, None] * self._forms[kind % n_forms]
        sign = 1.0 - 2.0 * (kind // n_forms % 2)
        moved_px = (mean[best] * SIZE_PX / 2).round()
        shift = -torch.einsum("bij,bj->bi", matrix, moved_px * 2 / (SIZE_PX - 1))
        return Poses(torch.full_like(reference, query), reference, sign, matrix, shift)


def _query_cells(pixels: torch.Tensor, look: Look) -> tuple[Cells, torch.Tensor, torch.Tensor]:
    """Cells, their middles (c, 2) with borders at -1 and 1, and the number of the scale each was cut at (c,)."""
    views = [(pixels.roll((-down, -right), (2, 3)), 0, (right, down)) for down, right in look.phases_px]
    for number, scale in enumerate(look.scales):
        seen, inside = warped(pixels, torch.eye(2)[None] * scale, torch.zeros(1, 2), SIZE_PX)
        views.append((seen * inside, 1 + number, (0, 0)))
    middles = look.middles(look.query_stride)
    margin = look.cell / look.n_samples
    cells, places, scales = [], [], []
    for view, scale_number, offset in views:
        cut = look.cut(look.map_of(view), look.query_stride)[0]
        moved = middles + torch.tensor(offset) * 2 / SIZE_PX
        covered = 1 / (1.0, *look.scales)[scale_number]
        reach = min(1.0, covered) - margin + 1e-6  # a whole cell fits in; a shifted view wraps round at its far border
        fits = (moved.abs() <= reach).all(1)
        cells.append(cut[fits])
        places.append(moved[fits])
        scales.append(torch.full((int(fits.sum()),), scale_number))
    return standard(torch.cat(cells)), torch.cat(places), torch.cat(scales)


SEARCHES_ALL_OF = 96
N_RINGS, N_CELLS = 32, 32
RING_SCALES = (0.6, 0.75, 1.0, 1.3, 1.7)
REACH = 6  # samples of the 32 x 32 map on each side: even, so that the grid is its own mirror image
RADII, RING_WIDTH, N_HARMONICS = (1.0, 2.2, 3.4, 4.6, 5.8), 0.7, 5
RING_FLAT_NORM = 0.05
LEAST_COVERED = 0.6
RANKS_BLOCK = 16  # references at once: their products stay in the cache


class Shortlist:
    """The references worth a search at a site of more than ``SEARCHES_ALL_OF`` images: the best of two cheap ranks.

    *Rings*: magnitudes of angular harmonics on rings round a point, which no turn, mirroring or sign changes; for whole
    images and large parts. *Cells*: the small cells of the search for parts, on a coarse grid.
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        self.searches_all = len(pixels) <= SEARCHES_ALL_OF
        if self.searches_all:
            return
        rings = _rings(low_map(pixels), 2)
        self._mean = rings.mean((0, 1))
        self._rings, self._cells = self._centred(rings), _coarse_cells(pixels)

    def choose(self, pixels: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Positions of the references worth searching for one image (1, 1, 64, 64), of those ``allowed`` (n,)."""
        if self.searches_all:
            return allowed.nonzero()[:, 0]
        # rings: how many places of the image stand out as alike, at its best scale
        scales, still = torch.tensor(RING_SCALES), torch.zeros(len(RING_SCALES), 2)
        images = pixels.expand(len(scales), -1, -1, -1)
        seen, inside = warped(images, torch.eye(2) * scales[:, None, None], still, SIZE_PX)
        places = self._centred(_rings(low_map(seen), 4))
        covered = F.avg_pool2d(F.avg_pool2d(inside, 2), 2 * REACH, 4, 2).flatten(1) > LEAST_COVERED
        alike = _best_of_places(places.flatten(0, 1), self._rings, lambda products: products.amax(2))
        alike = alike.unflatten(0, places.shape[:2])
        standing_out = (alike - alike.mean(2, keepdim=True)).clamp_min(0).square() * covered[:, :, None]
        by_rings = (standing_out.sum(1) / covered.sum(1).clamp_min(4).sqrt()[:, None]).amax(0)
        # cells: how well each cell of the image, or its negative, matches one of a reference's
        best = _best_of_places(
            _coarse_cells(pixels)[0], self._cells, lambda products: torch.maximum(products.amax(2), -products.amin(2))
        )
        by_cells = (best - PART_LEAST_CORRELATION).clamp_min(0).sum(0)
        # the best of either rank
        ranks = ((by_rings, N_RINGS), (by_cells, N_CELLS))
        chosen = torch.cat([torch.where(allowed, x, -math.inf).topk(n).indices for x, n in ranks]).unique()
        return chosen[allowed[chosen]]

    def _centred(self, rings: torch.Tensor) -> torch.Tensor:
        rings = rings - self._mean
        return rings / (rings.norm(dim=-1, keepdim=True) + 1e-3)


def _coarse_cells(pixels: torch.Tensor) -> torch.Tensor:
    """(n, cells, size) of images on their own, in standard form, of a coarse grid."""
    cells = MIDDLE.cut(MIDDLE.map_of(pixels), MIDDLE.query_stride)
    return standard(cells.flatten(0, 1)).values.view(cells.shape)


def _best_of_places(
    rows: torch.Tensor, references: torch.Tensor, best: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """(q, n): the ``best`` product over the places of references (n, places, d) with rows (q, d)."""
    products = (rows @ block.flatten(0, 1).T for block in references.split(RANKS_BLOCK))
    return torch.cat([best(product.unflatten(1, (-1, references.shape[1]))) for product in products], 1)


def _rings(maps: torch.Tensor, stride: int) -> torch.Tensor:
    """(n, 1, 32, 32) -> (n, places, radii x harmonics) of length about 1."""
    line = torch.arange(2 * REACH) - (REACH - 0.5)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    radius, angle = torch.hypot(rows, columns), torch.atan2(rows, columns)
    filters = []
    for ring in RADII:
        weight = torch.exp(-((radius - ring) ** 2) / (2 * RING_WIDTH**2))
        weight = weight / weight.sum()
        for harmonic in range(N_HARMONICS):
            filters += [weight * torch.cos(harmonic * angle), weight * torch.sin(harmonic * angle)]
    parts = F.conv2d(maps, torch.stack(filters)[:, None], stride=stride, padding=2)
    rings = parts.unflatten(1, (-1, 2)).norm(dim=2).flatten(2).permute(0, 2, 1)
    return rings / (rings.norm(dim=2, keepdim=True) + RING_FLAT_NORM)
