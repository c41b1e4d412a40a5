"""How a copy may lie over its original: reference, sign, and the affine map from the original's frame to the copy's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TURNS_DEG = (-36, -18, 0, 18, 36)  # the steps between quarter turns; alignment does the rest
SCALES = (0.72, 0.85, 1.0, 1.17, 1.35, 1.75)  # of the copy: 1.75 is a crop of 57 % of the side
LEAST_AREA, LARGEST_AREA = 0.1, 8.0  # of a pose's determinant; beyond, one blob fits any other


@dataclass(frozen=True, eq=False)
class Poses:
    """``query`` and ``reference`` (n,) positions, ``sign`` (n,), ``matrix`` (n, 2, 2), ``shift`` (n, 2)."""

    query: torch.Tensor
    reference: torch.Tensor
    sign: torch.Tensor
    matrix: torch.Tensor
    shift: torch.Tensor

    def at(self, positions: torch.Tensor) -> Poses:
        """The poses at these positions."""
        return Poses(
            self.query[positions],
            self.reference[positions],
            self.sign[positions],
            self.matrix[positions],
            self.shift[positions],
        )

    def moved(self, matrix: torch.Tensor, shift: torch.Tensor) -> Poses:
        """The same pairs, aligned otherwise."""
        return Poses(self.query, self.reference, self.sign, matrix, shift)

    @property
    def plausible(self) -> torch.Tensor:
        """(n,): neither collapsed nor blown up."""
        import torch

        area = torch.linalg.det(self.matrix).abs()
        return (area > LEAST_AREA) & (area < LARGEST_AREA) & torch.isfinite(self.shift).all(1)


def joined(parts: list[Poses]) -> Poses:
    """All poses of several searches."""
    import torch

    return Poses(
        torch.cat([part.query for part in parts]),
        torch.cat([part.reference for part in parts]),
        torch.cat([part.sign for part in parts]),
        torch.cat([part.matrix for part in parts]),
        torch.cat([part.shift for part in parts]),
    )


def turned(quarters: int, mirrored: bool, degrees: float = 0.0) -> torch.Tensor:
    """(2, 2): the frame turned, then mirrored along x."""
    import torch

    angle = math.radians(90 * quarters + degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    flip = torch.diag(torch.tensor([-1.0 if mirrored else 1.0, 1.0]))
    return torch.tensor([[cos, -sin], [sin, cos]]) @ flip


def symmetries() -> torch.Tensor:
    """(8, 2, 2): quarter turns, each mirrored and not."""
    import torch

    return torch.stack([turned(quarters, mirrored).round() for mirrored in (False, True) for quarters in range(4)])


def orientations() -> torch.Tensor:
    """(40, 2, 2): the symmetries with the turns between them."""
    import torch

    return torch.stack(
        [turned(q, mirrored, degrees) for mirrored in (False, True) for q in range(4) for degrees in TURNS_DEG]
    )
