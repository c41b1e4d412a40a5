"""Affine alignment by Gauss-Newton on locally normalised maps (inverse compositional, Baker and Matthews 2004).

Places where the two agree weigh more, so that an occluder, a second image or an elastic change pulls little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memorization.registration.maps import warped
from memorization.registration.poses import Poses

if TYPE_CHECKING:
    import torch

WINDOW = 9  # of the local agreement
LARGEST_STEP = 0.15  # of half the image, per step
DAMPING = 1e-3
LEAST_WEIGHT = 0.02


def align(queries: torch.Tensor, references: torch.Tensor, poses: Poses, n_steps: int) -> tuple[Poses, torch.Tensor]:
    """Refine the poses of pairs of maps (n, 1, s, s); returns them with the agreement (n,) reached, 0 to 1."""
    import torch
    from torch.nn import functional as F

    n, size = len(queries), queries.shape[-1]
    descent = _steepest_descent(references)
    energy = _box(references * references)
    matrix, shift = poses.matrix, poses.shift
    sign = poses.sign[:, None, None, None]
    identity = torch.eye(6)
    for step in range(n_steps + 1):
        seen, inside = warped(queries, matrix, shift, size)
        seen = seen * sign
        local = _box(seen * references) / torch.sqrt(_box(seen * seen) * energy + 1e-3)
        weight = local.clamp_min(LEAST_WEIGHT) ** 2 * inside
        if step == n_steps:
            break
        weighted = (descent * weight.reshape(n, -1, 1)).transpose(1, 2)
        normal = weighted @ descent
        damping = DAMPING * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        change = torch.linalg.solve(
            normal + damping[:, None, None] * identity, weighted @ (seen - references).reshape(n, -1, 1)
        )
        change = change[..., 0].clamp(-LARGEST_STEP, LARGEST_STEP).view(n, 2, 3)
        matrix = matrix @ torch.linalg.inv(torch.eye(2) + change[:, :, :2])
        shift = shift - torch.einsum("bij,bj->bi", matrix, change[:, :, 2])
    return poses.moved(matrix, shift), F.relu(local).square().mul(inside).flatten(1).mean(1)


def _steepest_descent(references: torch.Tensor) -> torch.Tensor:
    """(n, pixels, 6): change of a reference's value with each of the affine parameters."""
    import torch
    from torch.nn import functional as F

    n, size = len(references), references.shape[-1]
    half = (size - 1) / 2  # pixels per unit
    along_x = F.pad((references[..., 2:] - references[..., :-2]) / 2, (1, 1, 0, 0)) * half
    along_y = F.pad((references[..., 2:, :] - references[..., :-2, :]) / 2, (0, 0, 1, 1)) * half
    line = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    place = torch.stack([columns, rows, torch.ones_like(rows)], -1).reshape(-1, 3)
    return torch.cat([along_x.reshape(n, -1, 1) * place, along_y.reshape(n, -1, 1) * place], -1)


def _box(x: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    half = WINDOW // 2
    x = F.avg_pool2d(x, (1, WINDOW), 1, (0, half), count_include_pad=False)
    return F.avg_pool2d(x, (WINDOW, 1), 1, (half, 0), count_include_pad=False)
