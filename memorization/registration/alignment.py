"""Affine alignment by Gauss-Newton on locally normalised maps (inverse compositional, Baker and Matthews 2004).

Places where the two agree weigh more, so that an occluder, a second image or an elastic change pulls little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memorization.registration.maps import box_mean, warped
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
    energy = box_mean(references * references, WINDOW)
    matrix, shift = poses.matrix, poses.shift
    sign = poses.sign[:, None, None, None]
    identity = torch.eye(6)
    for step in range(n_steps + 1):
        seen, inside = warped(queries, matrix, shift, size)
        seen = seen * sign
        local = box_mean(seen * references, WINDOW) / torch.sqrt(box_mean(seen * seen, WINDOW) * energy + 1e-3)
        weight = local.clamp_min(LEAST_WEIGHT) ** 2 * inside
        if step == n_steps:
            break
        weighted = descent * weight.reshape(n, 1, -1)
        normal = weighted @ descent.transpose(1, 2)
        damping = DAMPING * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        change = torch.linalg.solve(
            normal + damping[:, None, None] * identity, weighted @ (seen - references).reshape(n, -1, 1)
        )
        change = change[..., 0].clamp(-LARGEST_STEP, LARGEST_STEP).view(n, 2, 3)
        matrix = matrix @ torch.linalg.inv(torch.eye(2) + change[:, :, :2])
        shift = shift - torch.einsum("bij,bj->bi", matrix, change[:, :, 2])
    return poses.moved(matrix, shift), F.relu(local).square().mul(inside).flatten(1).mean(1)


def _steepest_descent(references: torch.Tensor) -> torch.Tensor:
    """(n, 6, pixels): change of a reference's value with each of the affine parameters."""
    import torch
    from torch.nn import functional as F

    size = references.shape[-1]
    half = (size - 1) / 2  # pixels per unit
    along_x = F.pad((references[..., 2:] - references[..., :-2]) / 2, (1, 1, 0, 0)) * half
    along_y = F.pad((references[..., 2:, :] - references[..., :-2, :]) / 2, (0, 0, 1, 1)) * half
    line = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    place = torch.stack([columns, rows, torch.ones_like(rows)])
    return torch.cat([along_x * place, along_y * place], 1).flatten(2)
