"""Where several references show the same: a frame, burnt-in text, a device's mark.

Agreement at such a place says nothing of a copy, and would hide what a small part says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

N_OTHERS = 48  # references that each is set beside
SHARED_BY, LEAST_SHARED_BY = 0.05, 3  # of them, and at least so many
ALIKE, SAME = 0.6, 0.9  # correlations between which a place that others share counts less and less
SAME_SCENE = 0.5  # mean correlation of two images, above which they are one patient's
BLOCK = 32  # references at once


def own_places(n_references: int, correlations: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """(n, places): 0 where several other references show the same, 1 where none does.

    References that are alike all over are not counted: what the images of one patient share is the patient.

    Args:
        correlations: of references at these positions (b,) with others at these (b,), place by place (b, places).
    """
    import torch

    n_others = min(N_OTHERS, n_references - 1)
    rank = max(LEAST_SHARED_BY, round(SHARED_BY * n_others))
    steps = [round((other + 1) * n_references / (n_others + 1)) for other in range(n_others)]
    weights = []
    for block in torch.arange(n_references).split(BLOCK):
        if n_others < rank:
            weights.append(torch.ones_like(correlations(block, block)))
            continue
        found = torch.stack([correlations(block, (block + step) % n_references) for step in steps])
        found.masked_fill_(found.mean(2, keepdim=True) > SAME_SCENE, 0)
        weights.append(((SAME - found.topk(rank, dim=0).values[-1]) / (SAME - ALIKE)).clamp(0, 1))
    return torch.cat(weights)
