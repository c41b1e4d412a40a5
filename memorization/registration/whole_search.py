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
BLOCK = 16  # references at once: their votes stay in the cache
LEAST_VALID, LEAST_NORM, FLAT_NORM = 0.75, 0.6, 0.3  # cells outside the image or without structure do not vote


class WholeSearch:
    """The references, ready to be voted for."""

    def __init__(self, pixels: torch.Tensor) -> None:
        from torch.nn import functional as F

        self._cells = _unit(F.unfold(halved(low_map(pixels)), CELL), 1).permute(1, 0, 2)  # (CELL * CELL, n, positions)
        self._side = GRID - CELL + 1
        self._turns = orientations()

    def votes(self, pixels: torch.Tensor, query: int, n_poses: int, chosen: torch.Tensor) -> Poses:
        """The ``n_poses`` best of one image (1, 1, 64, 64) over the ``chosen`` references."""
        import torch

        votes = [self._at_scale(pixels, scale, chosen) for scale in SCALES]  # of each (turns, n, shifts)
        low_high = [part.aminmax(dim=2) for part in votes]
        strength = torch.stack([torch.stack([high, -low]) for low, high in low_high])  # (scales, 2, turns, n)
        best = strength.flatten().topk(min(n_poses, strength.numel())).indices
        scale, negative, turn, reference = torch.unravel_index(best, strength.shape)
        signs = 1.0 - 2.0 * negative
        found = zip(scale.tolist(), turn.tolist(), reference.tolist(), signs, strict=True)
        place = torch.stack([(votes[at][turned, position] * sign).argmax() for at, turned, position, sign in found])
        span = 2 * self._side - 1
        samples = torch.stack([place % span, place // span], 1).float() - (self._side - 1)
        matrix = torch.tensor(SCALES)[scale][:, None, None] * self._turns[turn]
        shift = -torch.einsum("bij,bj->bi", matrix, samples * (SIZE_PX // GRID) * 2 / (SIZE_PX - 1))
        return Poses(torch.full_like(reference, query), chosen[reference], signs, matrix, shift)

    def _at_scale(self, pixels: torch.Tensor, scale: float, chosen: torch.Tensor) -> torch.Tensor:
        """Votes (turns, n, shifts), below 0 for a negative."""
        import torch

        starts = _starts(scale)
        rows, weight = _query_cells(*_posed(pixels, scale, self._turns), starts)
        votes = torch.cat([self._for_references(rows, starts, block) for block in chosen.split(BLOCK)], 1)
        return votes.div_(weight.sum(1).clamp_min(4).sqrt()[:, None, None])

    def _for_references(self, rows: torch.Tensor, starts: tuple[int, ...], block: torch.Tensor) -> torch.Tensor:
        """The sums of cells (turns, cells, CELL * CELL) for a few references."""
        import torch

        n_turns, n_cells, _ = rows.shape
        response = rows.flatten(0, 1) @ self._cells[:, block].flatten(1)
        response = response.mul_(response.abs()).view(n_turns, n_cells, len(block), self._side, self._side)
        span = 2 * self._side - 1
        votes = torch.zeros(n_turns, len(block), span, span)
        for cell, (top, left) in enumerate((top, left) for top in starts for left in starts):
            at = self._side - 1 - top, self._side - 1 - left
            votes[:, :, at[0] : at[0] + self._side, at[1] : at[1] + self._side] += response[:, cell]
        return votes.flatten(2)


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
