"""Where a whole image may have come from: coarse cells of the query vote for reference, orientation, scale and shift.

A cell's vote is its correlation squared with its sign, so that few cells that fit well outweigh many that half fit, and
a negative shows as votes below 0. What is hidden, cut off or new in the query only takes votes away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memorization.registration.maps import SIZE_PX, halved, low_map, warped
from memorization.registration.poses import SCALES, Poses, orientations

if TYPE_CHECKING:
    import torch

GRID = SIZE_PX // 4  # the maps of the votes: 16 x 16 samples
CELL = 6  # samples, 24 px
CELLS_PER_AXIS = 4  # of the query
BLOCK = 8  # references at once: their votes stay in the cache
LEAST_VALID, LEAST_NORM, FLAT_NORM = 0.75, 0.6, 0.3  # cells outside the image or without structure do not vote


class WholeSearch:
    """The references, ready to be voted for."""

    def __init__(self, pixels: torch.Tensor) -> None:
        from torch.nn import functional as F

        cells = _unit(F.unfold(halved(low_map(pixels)), CELL), 1)  # (n, CELL * CELL, positions)
        self._cells = cells.permute(0, 2, 1).contiguous()
        self._side = GRID - CELL + 1
        self._turns = orientations()

    def votes(self, pixels: torch.Tensor, query: int, n_poses: int, chosen: torch.Tensor) -> Poses:
        """The ``n_poses`` best of one image (1, 1, 64, 64) over the ``chosen`` references."""
        import torch

        votes = [self._at_scale(pixels, scale, chosen) for scale in SCALES]
        strength = torch.stack([_strength(blocks) for blocks in votes])  # (scales, 2, n, turns)
        best = strength.flatten().topk(min(n_poses, strength.numel())).indices
        scale, negative, reference, turn = torch.unravel_index(best, strength.shape)
        signs = 1.0 - 2.0 * negative
        found = zip(scale.tolist(), reference.tolist(), turn.tolist(), signs, strict=True)
        place = torch.stack(
            [(votes[s][n // BLOCK][:, n % BLOCK, turned] * sign).argmax() for s, n, turned, sign in found]
        )
        span = 2 * self._side - 1
        samples = torch.stack([place % span, place // span], 1).float() - (self._side - 1)
        matrix = torch.tensor(SCALES)[scale][:, None, None] * self._turns[turn]
        shift = -torch.einsum("bij,bj->bi", matrix, samples * (SIZE_PX // GRID) * 2 / (SIZE_PX - 1))
        return Poses(torch.full_like(reference, query), chosen[reference], signs, matrix, shift)

    def _at_scale(self, pixels: torch.Tensor, scale: float, chosen: torch.Tensor) -> list[torch.Tensor]:
        """Votes (shifts, BLOCK, turns) of every block of references, below 0 for a negative."""
        starts = _starts(scale)
        cells, weight = _query_cells(*_posed(pixels, scale, self._turns), starts)
        size = weight.sum(1).clamp_min(4).sqrt()
        return [self._for_references(cells, starts, block).div_(size) for block in chosen.split(BLOCK)]

    def _for_references(self, cells: torch.Tensor, starts: tuple[int, ...], block: torch.Tensor) -> torch.Tensor:
        """The sums of cells (turns, cells, CELL * CELL) for a few references; turns lie side by side in memory."""
        import torch

        side, span, n_turns = self._side, 2 * self._side - 1, len(cells)
        references = self._cells[block].permute(1, 0, 2).reshape(-1, CELL * CELL)
        votes = torch.zeros(span, span, len(block), n_turns)
        for number, (top, left) in enumerate((top, left) for top in starts for left in starts):
            response = references @ cells[:, number].T
            response = response.mul_(response.abs()).view(side, side, len(block), n_turns)
            votes[side - 1 - top : 2 * side - 1 - top, side - 1 - left : 2 * side - 1 - left] += response
        return votes.flatten(0, 1)


def _strength(blocks: list[torch.Tensor]) -> torch.Tensor:
    """(2, n, turns): the most votes of all shifts, for a copy and for a negative."""
    import torch

    return torch.cat([torch.stack([votes.amax(0), -votes.amin(0)]) for votes in blocks], 1)


def _starts(scale: float) -> tuple[int, ...]:
    """First samples of the query's cells, per axis: spread over what the query covers at this scale."""
    margin = max(0.0, GRID - GRID / scale) / 2
    room = GRID - 2 * margin - CELL
    return tuple(round(margin + room * part / (CELLS_PER_AXIS - 1)) for part in range(CELLS_PER_AXIS))


def _posed(pixels: torch.Tensor, scale: float, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coarse maps (turns, 16, 16) of the image at a scale under every orientation, and where it covers them."""
    import torch

    scaled, inside = warped(pixels, torch.eye(2)[None] * scale, torch.zeros(1, 2), SIZE_PX)
    layers = torch.cat([halved(low_map(scaled)), halved(halved(inside))], 1).expand(len(turns), -1, -1, -1)
    seen, inside = warped(layers, turns, torch.zeros(len(turns), 2), GRID)
    return seen[:, 0], seen[:, 1] * inside[:, 0]


def _query_cells(maps: torch.Tensor, valid: torch.Tensor, starts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells (p, cells, CELL * CELL) of length about 1 or 0, and which of them vote (p, cells)."""
    import torch

    def cut(layer: torch.Tensor) -> torch.Tensor:
        parts = [layer[:, top : top + CELL, left : left + CELL].flatten(1) for top in starts for left in starts]
        return torch.stack(parts, 1)

    cells = cut(maps)
    spread = (cells - cells.mean(2, keepdim=True)).norm(dim=2)
    weight = ((cut(valid).mean(2) > LEAST_VALID) & (spread > LEAST_NORM)).float()
    return _unit(cells, 2) * weight[..., None], weight


def _unit(cells: torch.Tensor, dim: int) -> torch.Tensor:
    """Without their mean and of length 1, or less where there is hardly any structure."""
    cells = cells - cells.mean(dim, keepdim=True)
    return cells / (cells.norm(dim=dim, keepdim=True) + FLAT_NORM)
