"""Small square cells of a map in a standard form, so that mirrored, turned and negative ones are compared at once.

A cell is brought into one of its eight symmetric forms and one sign by its moments; two cells that are alike but for
those are alike in standard form, and their forms tell how one leads to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FLAT_NORM = 0.5  # cells without structure match nothing


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells in their standard form: ``values`` (n, size * size), ``form`` and ``sign`` (n,) that led to it."""

    values: torch.Tensor
    form: torch.Tensor
    sign: torch.Tensor


def standard(cells: torch.Tensor) -> Cells:
    """Of (n, size * size): bright off the middle, and the first moments positive, the larger along x."""
    cells = _unit(cells)
    along, sign = _moments(cells)
    return _in_form(cells, sign, _form(along))


def forms() -> torch.Tensor:
    """(8, 2, 2): mirrored along x (1), along y (2), axes exchanged (4)."""
    import torch

    exchange = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    flips = [torch.diag(torch.tensor([x, y])) for y in (1.0, -1.0) for x in (1.0, -1.0)]
    return torch.stack([*flips, *(flip @ exchange for flip in flips)])


def relative_forms() -> torch.Tensor:
    """(8, 8): the form that leads from a reference's frame (second) to the query's (first), both in standard form."""
    import torch

    every = forms()
    products = torch.einsum("aij,bkj->abik", every, every)
    relative: torch.Tensor = (products[:, :, None] - every).abs().sum((3, 4)).argmin(2)
    return relative


def _unit(cells: torch.Tensor) -> torch.Tensor:
    cells = cells - cells.mean(1, keepdim=True)
    return cells / (cells.norm(dim=1, keepdim=True) + FLAT_NORM)


def _moments(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First moments (n, 2) of the cells, each in the sign (n,) that makes its second moment positive."""
    import torch

    place = _offsets(cells)
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

    size = isqrt(cells.shape[1])
    source = (torch.einsum("fij,pj->fpi", forms(), _offsets(cells)) + (size - 1) / 2).round().long()
    taken = source[..., 1] * size + source[..., 0]
    return Cells(torch.gather(cells * sign[:, None], 1, taken[form]), form, sign)


def _offsets(cells: torch.Tensor) -> torch.Tensor:
    """(size * size, 2): (x, y) of a cell's samples from its middle."""
    import torch

    size = isqrt(cells.shape[1])
    line = torch.arange(size) - (size - 1) / 2
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns, rows], -1).reshape(-1, 2)
