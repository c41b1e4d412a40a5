"""The scorer: search for poses, align the best, measure how far they agree."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from common.progress import Progress, silent
from memorization.likeness import Likeness, stacked
from memorization.registration.agreement import NAMES, POSED_NAMES, Agreement
from memorization.registration.alignment import align
from memorization.registration.bending import bend
from memorization.registration.maps import grey, low_map, middle_map
from memorization.registration.part_search import FINE, MIDDLE, PartSearch
from memorization.registration.place_search import PlaceSearch
from memorization.registration.poses import Poses, joined
from memorization.registration.shortlist import Shortlist
from memorization.registration.whole_search import WholeSearch
from training.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

BATCH = 16  # images whose poses are aligned together
N_VOTED, N_LIKELY, N_ALIGNED = 96, 32, 10  # whole images: poses that are aligned for a few steps, for all, and further
N_IN_PLACE = 4  # by either look
N_PARTS_VOTED, N_FINE_PARTS_VOTED, N_PARTS = 24, 8, 4
N_FIRST_STEPS, N_STEPS = 3, 8
N_BENT = 3  # poses that are bent as well, those whose middle detail agrees best at most places
BENT_BY = [POSED_NAMES.index(name) for name in ("0.7 to 1.6 px, best 50 %", "1.2 to 3 px, best 100 %")]


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
        self._whole, self._place = WholeSearch(pixels), PlaceSearch(pixels)
        self._parts, self._fine_parts = PartSearch(pixels, MIDDLE), PartSearch(pixels, FINE)
        self._agreement, self._pixels = Agreement(pixels), pixels

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """The best of every statistic over the poses found, and the reference it belongs to.

        Blocks of images are compared beside each other, each on one thread of those PyTorch may use: the operations
        are too small to be shared out themselves.
        """
        import torch

        keep_freed_memory()
        allowed = torch.ones(len(images), self._n_references, dtype=torch.bool)
        if excluded is not None:
            allowed = torch.from_numpy(~excluded)
        blocks = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
        parts = [Likeness(np.zeros((0, len(NAMES))), np.zeros((0, len(NAMES)), np.int64))]
        with single_threaded_operations() as n_threads, ThreadPoolExecutor(n_threads) as pool:
            compared = pool.map(lambda block: self._compare(grey(images[block]), allowed[block]), blocks)
            for block, part in zip(blocks, compared, strict=True):
                parts.append(part)
                progress(min(block.stop, len(images)), len(images), "images")
        return stacked(parts)

    def _compare(self, pixels: torch.Tensor, allowed: torch.Tensor) -> Likeness:
        import torch

        with torch.inference_mode():  # holds for one thread
            return self._likeness(pixels, allowed)

    def _likeness(self, pixels: torch.Tensor, allowed: torch.Tensor) -> Likeness:
        import torch

        poses = self._poses(pixels, allowed)
        posed = self._agreement.measure(pixels[poses.query], poses, allowed[poses.query]).to(torch.float64)
        bent_poses = poses.at(_best_of_each(poses.query, posed[:, BENT_BY].sum(1), N_BENT))
        queries = pixels[bent_poses.query]
        field = bend(queries, self._pixels[bent_poses.reference], bent_poses)
        bent = self._agreement.measure_bent(queries, bent_poses, field, allowed[bent_poses.query]).to(torch.float64)
        parts = [_best(posed, poses, len(pixels)), _best(bent, bent_poses, len(pixels))]
        values, nearest = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return Likeness(values.numpy(), nearest.numpy())

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
            parts.append(self._parts.votes(one, query, N_PARTS_VOTED, chosen, allowed[query]))
            parts.append(self._fine_parts.votes(one, query, N_FINE_PARTS_VOTED, chosen, allowed[query]))
        voted, agreement = self._aligned_coarsely(pixels, joined(whole), N_FIRST_STEPS)
        voted = voted.at(_best_of_each(voted.query, agreement, N_LIKELY))
        aligned, agreement = self._aligned_coarsely(pixels, voted, N_STEPS)
        good = aligned.at(_best_of_each(aligned.query, agreement, N_ALIGNED))
        found = joined(parts)
        likely = self._agreement.of_a_part(pixels[found.query], found, allowed[found.query])
        part = found.at(_best_of_each(found.query, likely, N_PARTS))
        fine = joined([good, part])
        finer, _ = align(middle_map(pixels)[fine.query], self._middle[fine.reference], fine, N_STEPS)
        best = aligned.at(_best_of_each(aligned.query, agreement, 1))
        return joined([finer, best, *in_place, part])

    def _aligned_coarsely(self, pixels: torch.Tensor, poses: Poses, n_steps: int) -> tuple[Poses, torch.Tensor]:
        return align(low_map(pixels)[poses.query], self._low[poses.reference], poses, n_steps)


@contextmanager
def single_threaded_operations() -> Iterator[int]:
    """PyTorch's operations on one thread each meanwhile; gives the number of threads that they may take together."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(n_threads)


def _best(values: torch.Tensor, poses: Poses, n_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of every statistic over the poses of each query, and the reference it belongs to."""
    import torch

    best = torch.zeros(n_queries, values.shape[1], dtype=values.dtype)
    nearest = torch.zeros(n_queries, values.shape[1], dtype=torch.int64)
    for query in range(n_queries):
        own = (poses.query == query).nonzero()[:, 0]
        if len(own):
            best[query], position = values[own].max(0)
            nearest[query] = poses.reference[own][position]
    return best, nearest


def _best_of_each(query: torch.Tensor, agreement: torch.Tensor, n_best: int) -> torch.Tensor:
    """Positions of the ``n_best`` poses of every query."""
    import torch

    order = torch.argsort(agreement, descending=True, stable=True)
    order = order[torch.argsort(query[order], stable=True)]
    counts = torch.bincount(query)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[query[order]]
    return order[rank < n_best]
