"""The scorer: search for poses, align the best, measure how far they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from common.progress import Progress, silent
from memorization.likeness import Likeness
from memorization.registration.agreement import NAMES, Agreement
from memorization.registration.alignment import align
from memorization.registration.maps import grey, low_map, middle_map
from memorization.registration.part_search import PartSearch
from memorization.registration.place_search import PlaceSearch
from memorization.registration.poses import Poses, joined
from memorization.registration.shortlist import Shortlist
from memorization.registration.whole_search import WholeSearch

if TYPE_CHECKING:
    import torch

BATCH = 16  # images whose poses are aligned together
N_VOTED, N_ALIGNED = 32, 6  # whole images: poses that are first aligned coarsely, and that go on
N_IN_PLACE = 2  # by either look
N_PARTS_VOTED, N_PARTS = 24, 4
N_STEPS = 8


class RegistrationScorer:
    """Copies under any similarity or affine map, photometric change, negative, occlusion, blend or paste."""

    name: str = "registration"
    statistics: tuple[str, ...] = NAMES

    def index(self, references: np.ndarray) -> RegisteredReferences:
        """Make (n, channels, height, width) ready."""
        return RegisteredReferences(references)


class RegisteredReferences:
    """Maps and cells of the references."""

    def __init__(self, references: np.ndarray) -> None:
        pixels = grey(references)
        self._n_references, self._shortlist = len(pixels), Shortlist(pixels)
        self._low, self._middle = low_map(pixels), middle_map(pixels)
        self._whole, self._parts, self._place = WholeSearch(pixels), PartSearch(pixels), PlaceSearch(pixels)
        self._agreement = Agreement(pixels)

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """The best of every statistic over the poses found, and the reference it belongs to."""
        import torch

        blocks: list[tuple[np.ndarray, np.ndarray]] = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                block = slice(start, start + BATCH)
                pixels = grey(images[block])
                allowed = torch.ones(len(pixels), self._n_references, dtype=torch.bool)
                if excluded is not None:
                    allowed = torch.from_numpy(~excluded[block])
                blocks.append(self._compare(pixels, allowed))
                progress(min(start + BATCH, len(images)), len(images), "images")
        if not blocks:
            return Likeness(np.zeros((0, len(NAMES))), np.zeros((0, len(NAMES)), np.int64))
        return Likeness(*(np.concatenate(part) for part in zip(*blocks, strict=True)))

    def _compare(self, pixels: torch.Tensor, allowed: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        import torch

        poses = self._poses(pixels, allowed)
        values = self._agreement.measure(pixels[poses.query], poses).to(torch.float64)
        best = torch.zeros(len(pixels), values.shape[1], dtype=values.dtype)
        nearest = torch.zeros(len(pixels), values.shape[1], dtype=torch.int64)
        for query in range(len(pixels)):
            own = (poses.query == query).nonzero()[:, 0]
            best[query], position = values[own].max(0)
            nearest[query] = poses.reference[own][position]
        return best.numpy(), nearest.numpy()

    def _poses(self, pixels: torch.Tensor, allowed: torch.Tensor) -> Poses:
        """Candidates of every image, as they were found and aligned."""
        whole: list[Poses] = []
        in_place: list[Poses] = []
        parts: list[Poses] = []
        for query in range(len(pixels)):
            one = pixels[query : query + 1]
            chosen = self._shortlist.choose(one, allowed[query])
            whole.append(self._whole.votes(one, query, N_VOTED, chosen))
            in_place += self._place.votes(one, query, N_IN_PLACE, allowed[query])
            parts.append(self._parts.votes(one, query, N_PARTS_VOTED, chosen))
        voted = joined(whole)
        aligned, agreement = align(low_map(pixels)[voted.query], self._low[voted.reference], voted, N_STEPS)
        good = aligned.at(_best_of_each(voted.query, agreement, N_ALIGNED))
        found = joined(parts)
        likely = self._agreement.of_a_part(pixels[found.query], found)
        part = found.at(_best_of_each(found.query, likely, N_PARTS))
        fine = joined([good, part])
        finer, _ = align(middle_map(pixels)[fine.query], self._middle[fine.reference], fine, N_STEPS)
        best = aligned.at(_best_of_each(voted.query, agreement, 1))
        return joined([finer, best, *in_place, part])


def _best_of_each(query: torch.Tensor, agreement: torch.Tensor, n_best: int) -> torch.Tensor:
    """Positions of the ``n_best`` poses of every query."""
    import torch

    order = torch.argsort(agreement, descending=True, stable=True)
    order = order[torch.argsort(query[order], stable=True)]
    counts = torch.bincount(query)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[query[order]]
    return order[rank < n_best]
