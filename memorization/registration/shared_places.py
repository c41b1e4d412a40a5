"""Where several references show the same: a frame, burnt-in text, a device's mark.

Agreement at such a place says nothing of a copy, and would hide what a small part says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

N_OTHERS = 48  # references that each is set beside
SHARED_BY = 3  # of them
ALIKE, SAME = 0.6, 0.9  # correlations between which a place that others share counts less and less
LEFT = 0.25  # of what others leave unexplained: an image that leaves less than this has more than the others
IDENTICAL = 0.98  # from here on others have the very same text or frame, and no copy can have more of it
SAME_SCENE = 0.5  # mean correlation of two images, above which they are one patient's
BLOCK = 32  # references at once
STEPS = 255  # of a correlation as it is kept


@dataclass(frozen=True, eq=False)
class SharedPlaces:
    """``others`` (n, m): references that each was set beside; ``alike`` (n, places, m): how much, 0 to 255.

    ``shared`` (n, places): the correlation with which several others show the same.
    """

    others: torch.Tensor
    alike: torch.Tensor
    shared: torch.Tensor

    def among(self, references: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """(b, places): ``shared`` of some references (b,), where only the ``allowed`` (b, n) others count.

        An image that calibrates must not count itself, nor its patient's: a new patient's image is not among the
        references either, and that the two are exchangeable is the whole guarantee.
        """
        import torch

        if allowed.all():
            return self.shared[references]
        return _shared(self.alike[references] * torch.gather(allowed, 1, self.others[references])[:, None])


def shared_places(
    n_references: int, correlations: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> SharedPlaces:
    """Set every reference beside others.

    Those that are alike all over do not count: what the images of one patient share is the patient.

    Args:
        correlations: of references at these positions (b,) with others at these (b,), place by place (b, places).
    """
    import torch

    n_others = min(N_OTHERS, n_references - 1)
    steps = torch.tensor([round((other + 1) * n_references / (n_others + 1)) for other in range(n_others)])
    others = (torch.arange(n_references)[:, None] + steps.long()) % n_references
    kept = []
    for block in torch.arange(n_references).split(BLOCK):
        found = [correlations(block, others[block, number]) for number in range(n_others)]
        alike = torch.stack(found, 2) if found else correlations(block, block)[:, :, None][:, :, :0]
        alike = torch.where(alike.mean(1, keepdim=True) > SAME_SCENE, 0, alike)
        kept.append((alike.clamp(0, 1) * STEPS).round().to(torch.uint8))
    alike = torch.cat(kept)
    return SharedPlaces(others, alike, torch.cat([_shared(block) for block in alike.split(BLOCK)]))


def unshared(shared: torch.Tensor) -> torch.Tensor:
    """0 where several others show the same, 1 where none does."""
    return ((SAME - shared) / (SAME - ALIKE)).clamp(0, 1)


def beyond_shared(correlation: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """What a correlation says where several others correlate like this.

    Less, down to nothing, unless it is of another order: neighbouring slices are alike, and only a copy is the same.
    """
    import torch

    left = (1 - correlation) / (LEFT * (1 - shared).clamp_min(1 - IDENTICAL))
    more_than_others = torch.where(shared < IDENTICAL, 1 - left, 0)
    return torch.maximum(correlation * unshared(shared), more_than_others)


def _shared(alike: torch.Tensor) -> torch.Tensor:
    """(b, places, m) -> (b, places)."""
    import torch

    if alike.shape[2] < SHARED_BY:
        return torch.zeros(alike.shape[:2])
    return alike.topk(SHARED_BY, dim=2).values[:, :, -1] / STEPS
