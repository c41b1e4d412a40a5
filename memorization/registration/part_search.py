"""Where a part of an image may have come from: small cells, and the shifts they agree on.

A pasted lesion, or what a crop left, is a handful of cells that all point to one reference by one shift; cells that
match by chance do not agree. A cell is brought into one of its eight symmetric forms and one sign by its moments, so
that a mirrored, turned or negative part costs no more to find than a plain one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memorization.registration.maps import SIZE_PX, halved, locally_normalised, warped
from memorization.registration.poses import Poses

if TYPE_CHECKING:
    import torch

GRID = SIZE_PX // 2  # cells are sampled every second pixel
CELL = 7  # samples, 14 px
STRIDE = 2  # samples between the query's cells of one phase; the references' stand at every sample
PHASES_PX = ((0, 0), (0, 1), (1, 0), (1, 1))  # a shift by an odd number of pixels falls between the samples
SCALES = (1.35, 1.75, 0.75)  # of the copy, tried in one phase only
LEAST_CORRELATION = 0.65
FLAT_NORM = 0.5  # cells without structure match nothing
BIN = 2.0  # samples of shift that count as one
BLOCK = 2  # references at once: their matches stay in the cache
SPAN = 160  # bins of shift per axis, more than any shift needs


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells in their standard form: ``values`` (n, CELL * CELL), ``form`` (n,) and ``sign`` (n,) that led to it."""

    values: torch.Tensor
    form: torch.Tensor
    sign: torch.Tensor


class PartSearch:
    """The references, cut into cells."""

    def __init__(self, pixels: torch.Tensor) -> None:
        from torch.nn import functional as F

        self._side = GRID - CELL + 1
        cells = F.unfold(_map(pixels), CELL).permute(0, 2, 1)
        standard = _standard(_unit(cells.reshape(-1, CELL * CELL)))
        self._values = standard.values.view(cells.shape)
        self._form, self._sign = standard.form.view(len(pixels), -1), standard.sign.view(len(pixels), -1)
        self._forms = _forms()
        self._relative = _relative_forms(self._forms)

    def votes(self, pixels: torch.Tensor, query: int, n_poses: int, chosen: torch.Tensor) -> Poses:
        """The best poses of one image (1, 1, 64, 64) over the ``chosen`` references; none where nothing matches."""
        import torch

        cells, middle, scale = _query_cells(pixels)
        standard = _standard(cells)
        row, column, value = self._matching(standard.values, chosen)
        form = self._relative[standard.form[row], self._form[chosen].flatten()[column]]
        negative = (value * standard.sign[row] * self._sign[chosen].flatten()[column] < 0).long()
        reference, place = column // self._side**2, column % self._side**2
        in_frame = torch.einsum("bji,bj->bi", self._forms[form], middle[row])  # the inverse is the transpose
        shift = _middles(place, self._side) - in_frame
        binned = (shift * (GRID - 1) / 2 / BIN).round().long() + SPAN // 2
        kind = (scale[row] * 2 + negative) * len(self._forms) + form
        key = (kind * len(chosen) + reference) * SPAN**2 + binned[:, 1] * SPAN + binned[:, 0]
        key, member = key.unique(return_inverse=True)
        excess = (value.abs() - LEAST_CORRELATION) / (1 - LEAST_CORRELATION)
        best = _sum_over_cells(member, row, len(cells), excess, len(key)).topk(min(n_poses, len(key))).indices
        total = torch.zeros(len(key)).index_add_(0, member, excess)
        mean = torch.zeros(len(key), 2).index_add_(0, member, shift * excess[:, None]) / total[:, None]
        kind, reference = key[best] // SPAN**2 // len(chosen), chosen[key[best] // SPAN**2 % len(chosen)]
        factor = torch.tensor((1.0, *SCALES))[kind // len(self._forms) // 2]
        matrix = factor[:, None, None] * self._forms[kind % len(self._forms)]
        sign = 1.0 - 2.0 * (kind // len(self._forms) % 2)
        moved_px = (mean[best] * SIZE_PX / 2).round()  # a pasted part moves by whole pixels; alignment does the rest
        shift = -torch.einsum("bij,bj->bi", matrix, moved_px * 2 / (SIZE_PX - 1))
        return Poses(torch.full_like(reference, query), reference, sign, matrix, shift)

    def _matching(self, cells: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cell, the position among all cells of the ``chosen`` references, and the correlation of what matches."""
        import torch

        n_cells, blocks = self._values.shape[1], []
        for start in range(0, len(chosen), BLOCK):
            values = self._values[chosen[start : start + BLOCK]]
            row, column, value = _above(cells @ values.flatten(0, 1).T)
            blocks.append((row, column + start * n_cells, value))
        row, column, value = (torch.cat(part) for part in zip(*blocks, strict=True))
        return row, column, value


def coarse_cells(pixels: torch.Tensor) -> torch.Tensor:
    """(n, cells, CELL * CELL) in standard form, of a grid of ``STRIDE`` samples."""
    from torch.nn import functional as F

    cells = F.unfold(_map(pixels), CELL, stride=STRIDE).permute(0, 2, 1)
    return _standard(_unit(cells.reshape(-1, CELL * CELL))).values.view(cells.shape)


def _map(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 1, 64, 64) -> (n, 1, 32, 32): structures of 1 to 4 px, which different patients do not share."""
    return halved(locally_normalised(pixels, 0.5, 1.8, 5.0))


def _query_cells(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cells (c, CELL * CELL), their middles (c, 2) with borders at -1 and 1, and the scale each was cut at (c,)."""
    import torch
    from torch.nn import functional as F

    views = [(pixels.roll((-down, -right), (2, 3)), 0, (right, down)) for down, right in PHASES_PX]
    for number, scale in enumerate(SCALES):
        seen, inside = warped(pixels, torch.eye(2)[None] * scale, torch.zeros(1, 2), SIZE_PX)
        views.append((seen * inside, 1 + number, (0, 0)))
    side = (GRID - CELL) // STRIDE + 1
    middles = _middles(torch.arange(side**2), side, STRIDE)
    cells, places, scales = [], [], []
    for view, scale_number, offset in views:
        cut = F.unfold(_map(view), CELL, stride=STRIDE)[0].T
        moved = middles + torch.tensor(offset) * 2 / SIZE_PX
        limit = 1 - CELL / GRID  # a whole cell fits in; a shifted view wraps round at its far border
        covered = 1 / (1.0, *SCALES)[scale_number]
        fits = ((moved.abs() <= limit + 1e-6) & (moved.abs() <= covered - CELL / GRID + 1e-6)).all(1)
        cells.append(cut[fits])
        places.append(moved[fits])
        scales.append(torch.full((int(fits.sum()),), scale_number))
    return _unit(torch.cat(cells)), torch.cat(places), torch.cat(scales)


def _middles(position: torch.Tensor, side: int, stride: int = 1) -> torch.Tensor:
    """(x, y) of the middles of cells; samples lie in the middles of 2 x 2 pixels, borders of the image at -1 and 1."""
    import torch

    samples = torch.stack([position % side, position // side], 1) * stride + CELL / 2
    return samples * 2 / GRID - 1


def _above(response: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and value of what matches."""
    row, column = (response.abs() > LEAST_CORRELATION).nonzero(as_tuple=True)
    return row, column, response[row, column]


def _sum_over_cells(
    member: torch.Tensor, cell: torch.Tensor, n_cells: int, excess: torch.Tensor, n_keys: int
) -> torch.Tensor:
    """Per key the sum over cells, each with its best match once."""
    import torch

    pair, position = (member * n_cells + cell).unique(return_inverse=True)
    best = torch.zeros(len(pair)).scatter_reduce_(0, position, excess, "amax")
    return torch.zeros(n_keys).index_add_(0, pair // n_cells, best)


def _unit(cells: torch.Tensor) -> torch.Tensor:
    cells = cells - cells.mean(1, keepdim=True)
    return cells / (cells.norm(dim=1, keepdim=True) + FLAT_NORM)


def _forms() -> torch.Tensor:
    """(8, 2, 2): mirrored along x (1), along y (2), axes exchanged (4)."""
    import torch

    exchange = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    flips = [torch.diag(torch.tensor([x, y])) for y in (1.0, -1.0) for x in (1.0, -1.0)]
    return torch.stack([*flips, *(flip @ exchange for flip in flips)])


def _relative_forms(forms: torch.Tensor) -> torch.Tensor:
    """(8, 8): the form that leads from a reference's frame (second) to the query's (first), both in standard form."""
    import torch

    products = torch.einsum("aij,bkj->abik", forms, forms)
    relative: torch.Tensor = (products[:, :, None] - forms).abs().sum((3, 4)).argmin(2)
    return relative


def _standard(cells: torch.Tensor) -> Cells:
    """Bright off the middle, and its first moments positive, the larger along x."""
    along, sign = _moments(cells)
    return _in_form(cells, sign, _form(along))


def _moments(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First moments (n, 2) of the cells, each in the sign (n,) that makes its second moment positive."""
    import torch

    place = _offsets()
    radius = place.square().sum(1)
    sign = torch.where(cells @ (radius - radius.mean()) < 0, -1.0, 1.0)
    return cells @ place * sign[:, None], sign


def _form(along: torch.Tensor) -> torch.Tensor:
    exchanged = along[:, 1].abs() > along[:, 0].abs()
    form: torch.Tensor = (along[:, 0] < 0).long() + 2 * (along[:, 1] < 0).long() + 4 * exchanged.long()
    return form


def _in_form(cells: torch.Tensor, sign: torch.Tensor, form: torch.Tensor) -> Cells:
    """Value at ``u`` is that at ``form u``."""
    import torch

    source = (torch.einsum("fij,pj->fpi", _forms(), _offsets()) + (CELL - 1) / 2).round().long()
    taken = source[..., 1] * CELL + source[..., 0]
    return Cells(torch.gather(cells * sign[:, None], 1, taken[form]), form, sign)


def _offsets() -> torch.Tensor:
    """(CELL * CELL, 2): (x, y) of a cell's samples from its middle."""
    import torch

    line = torch.arange(CELL) - (CELL - 1) / 2
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns, rows], -1).reshape(-1, 2)
