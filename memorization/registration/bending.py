"""What a smooth bend explains after affine alignment: optical flow with a wide window, coarse to fine.

Lucas and Kanade (1981), with the gradient of the reference for that of the image: they are nearly alike by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memorization.registration.maps import SIZE_PX, displaced, low_map, middle_map, smooth
from memorization.registration.poses import Poses

if TYPE_CHECKING:
    import torch

WINDOW_PX = 5.0  # of the flow: what bends within less is another image
LARGEST_STEP_PX = 1.0
DAMPING = 0.05  # of the mean of the structure tensor: where there is no structure, nothing moves
N_STEPS = 6  # on either map


def bend(queries: torch.Tensor, references: torch.Tensor, poses: Poses) -> torch.Tensor:
    """Displacements (n, 2, 64, 64) in px that lay the posed queries (n, 1, 64, 64) over the references."""
    import torch
    from torch.nn import functional as F

    field = torch.zeros(len(queries), 2, SIZE_PX, SIZE_PX)
    for of in (low_map, middle_map):
        target, source = of(references), of(queries)
        scale = SIZE_PX // target.shape[-1]
        steps = F.avg_pool2d(field, scale) / scale
        for _ in range(N_STEPS):
            steps = _step(source, target, poses, steps, WINDOW_PX / scale)
        field = F.interpolate(steps, scale_factor=scale, mode="bilinear") * scale
    return field


def _step(source: torch.Tensor, target: torch.Tensor, poses: Poses, field: torch.Tensor, window: float) -> torch.Tensor:
    """One step of the flow on maps (n, 1, s, s); ``field`` (n, 2, s, s) and ``window`` in samples."""
    import torch
    from torch.nn import functional as F

    seen, inside = displaced(source, poses.matrix, poses.shift, field)
    missing = (target - seen * poses.sign[:, None, None, None]) * inside
    along_x = F.pad((target[..., 2:] - target[..., :-2]) / 2, (1, 1, 0, 0)) * inside
    along_y = F.pad((target[..., 2:, :] - target[..., :-2, :]) / 2, (0, 0, 1, 1)) * inside
    xx, yy = smooth(along_x * along_x, window), smooth(along_y * along_y, window)
    xy, x, y = (smooth(product, window) for product in (along_x * along_y, along_x * missing, along_y * missing))
    damping = DAMPING * (xx + yy).mean((1, 2, 3), keepdim=True) + 1e-6
    xx, yy = xx + damping, yy + damping
    step = torch.cat([yy * x - xy * y, xx * y - xy * x], 1) / (xx * yy - xy * xy)
    return field + step.clamp(-LARGEST_STEP_PX, LARGEST_STEP_PX)
