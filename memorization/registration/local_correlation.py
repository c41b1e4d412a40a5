"""Correlation of two images place by place, and what a place can say.

Nearly every image has straight edges, and one lies over any other: a place that shows one edge and nothing else is
alike in images that have nothing in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memorization.registration.maps import pooled

if TYPE_CHECKING:
    import torch

CELLS = 16  # correlations are taken on 16 x 16 places
LEAST_FRAME = 0.3  # a mean over less of the frame than this counts as over this much
TWO_DIRECTIONS = 0.15  # ratio of the structure tensor's eigenvalues from which a place counts in full


def local_correlation(
    detail: torch.Tensor, reference: torch.Tensor, window: int, energy: torch.Tensor | None = None
) -> torch.Tensor:
    """(n, places) of two bands (n, 1, s, s) as they lie; ``energy``, where known, is the detail's local mean square."""
    import torch

    energy = pooled(detail * detail, window, CELLS) if energy is None else energy
    both = torch.sqrt(energy * pooled(reference * reference, window, CELLS) + 1e-10)
    local: torch.Tensor = pooled(detail * reference, window, CELLS) / both
    return local.flatten(1)


def best_local_correlation(detail: torch.Tensor, reference: torch.Tensor, window: int) -> torch.Tensor:
    """(n, places), each the best within one sample of shift."""
    import torch
    from torch.nn import functional as F

    energy, size = pooled(detail * detail, window, CELLS), detail.shape[-1]
    padded = F.pad(reference, (1, 1, 1, 1), mode="replicate")
    best: torch.Tensor | None = None
    for down in range(3):
        for right in range(3):
            moved = padded[:, :, down : down + size, right : right + size]
            local = local_correlation(detail, moved, window, energy)
            best = local if best is None else torch.maximum(best, local)
    assert best is not None
    return best


def two_directions(detail: torch.Tensor, window: int) -> torch.Tensor:
    """(n, places): 0 where detail (n, 1, s, s) varies along one direction only, 1 where along two.

    By the eigenvalues of the structure tensor (Shi and Tomasi, Good features to track, 1994).
    """
    import torch
    from torch.nn import functional as F

    across = F.pad(detail[..., 1:] - detail[..., :-1], (1, 0))
    along = F.pad(detail[..., 1:, :] - detail[..., :-1, :], (0, 0, 1, 0))
    xx, yy, xy = (pooled(g, window, CELLS).flatten(1) for g in (across * across, along * along, across * along))
    half_trace = (xx + yy) / 2
    apart = torch.sqrt(((xx - yy) / 2).square() + xy * xy)
    ratio = (half_trace - apart) / (half_trace + apart + 1e-12)
    return (ratio / TWO_DIRECTIONS).clamp(0, 1)


def at_places(valid: torch.Tensor) -> torch.Tensor:
    """(n, places): whether (n, 1, s, s) covers the place."""
    stride = valid.shape[-1] // CELLS
    return valid[:, :, ::stride, ::stride].flatten(1)


def mean_of_best(local: torch.Tensor, places: torch.Tensor, share: float) -> torch.Tensor:
    """(n,) mean of the best ``share`` of all places; of all that are covered, for 1."""
    if share == 1:
        mean: torch.Tensor = local.sum(1) / places.sum(1).clamp_min(LEAST_FRAME * local.shape[1])
        return mean
    best: torch.Tensor = local.topk(max(1, int(share * local.shape[1])), dim=1).values.mean(1)
    return best
