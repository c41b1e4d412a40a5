"""How alike images are: by the features of a network, by registration, and by both as the fused rule sees them.

A scorer makes real images ready (``index``); an index compares images with them. It gives one or more statistics for
each image, larger where the image is more alike its most alike reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.progress import Progress, silent
from features.embedders import Embedder
from features.index import RESOLUTION_L2
from memorization.registration.bands import NAMES, POSED_NAMES
from training.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

    from memorization.registration.maps import Poses

FUSED_STATISTICS = ("features", *NAMES)
FEATURES_BLOCK = 256  # images compared at once


@dataclass(frozen=True, eq=False)
class Likeness:
    """``values`` (m, statistics), larger is more alike; ``nearest`` (m, statistics): the reference each belongs to."""

    values: np.ndarray
    nearest: np.ndarray


class References(Protocol):
    """Real images, ready to be compared with."""

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """Compare (m, channels, height, width) with every reference but those ``excluded`` (m, n) names as True."""


@dataclass(frozen=True)
class Scorer:
    """One way to see that two images are alike; deterministic."""

    name: str
    statistics: tuple[str, ...]
    index: Callable[[np.ndarray], References]  # makes (n, channels, height, width) ready


@dataclass(frozen=True)
class Learner:
    """A scorer that is first trained on images of the site; those images must not calibrate it.

    Training pushes the images that it sees apart, so that they look less alike to the scorer than images that it has
    not seen. A threshold set on them would drop many images that are no copies.
    """

    name: str
    statistics: tuple[str, ...]
    train: Callable[[np.ndarray, int, Progress], Scorer]  # from (n, channels, height, width); the same for one seed


def joined(parts: Sequence[Likeness], axis: int = 1) -> Likeness:
    """The statistics of several scorers side by side; with ``axis`` 0 several sets of images, one after the other."""
    return Likeness(*(np.concatenate([getattr(part, name) for part in parts], axis) for name in ("values", "nearest")))


class FusedIndex:
    """Real images, ready to be compared with by all statistics of the fused rule (``FUSED_STATISTICS``)."""

    def __init__(self, images: np.ndarray, features: np.ndarray, mirrored: np.ndarray | None) -> None:
        self._features = EmbeddedFeatures(features[None] if mirrored is None else np.stack([features, mirrored]))
        self._registered = RegisteredReferences(images)

    def compare(
        self, images: np.ndarray, features: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent
    ) -> Likeness:
        """Images and their features against all references but those ``excluded`` (m, n)."""
        by_features = self._features.compare(features, excluded)
        return joined([by_features, self._registered.compare(images, excluded, progress)])


class EmbeddedFeatures:
    """``features`` (views, n, d), unit vectors; the nearest view of a reference counts."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = features.astype(np.float64)

    def compare(self, features: np.ndarray, excluded: np.ndarray | None = None) -> Likeness:
        """``-log`` of the squared distance of (m, d) unit vectors to the nearest reference."""
        parts = [Likeness(np.zeros((0, 1)), np.zeros((0, 1), np.int64))]
        for start in range(0, len(features), FEATURES_BLOCK):
            block = slice(start, start + FEATURES_BLOCK)
            closeness = np.einsum("vnd,md->vmn", self._features, features[block].astype(np.float64), optimize=True)
            distances = np.maximum(2 - 2 * closeness.max(axis=0), RESOLUTION_L2)
            if excluded is not None:
                distances[excluded[block]] = np.inf
            closest = distances.argmin(axis=1)
            of_closest = distances[np.arange(len(closest)), closest]
            parts.append(Likeness(-np.log(of_closest)[:, None], closest[:, None]))
        return joined(parts, axis=0)


def embedding_scorer(embedder: Embedder, mirrored: bool = True) -> Scorer:
    """The distance of features; mirror images of the references count as references."""

    def index(references: np.ndarray) -> EmbeddedReferences:
        views = [references, references[..., ::-1]] if mirrored else [references]
        return EmbeddedReferences(embedder, np.stack([embedder.embed(view) for view in views]))

    return Scorer(embedder.name, (embedder.name,), index)


class EmbeddedReferences(EmbeddedFeatures):
    """References by their features, for images that are not embedded yet."""

    def __init__(self, embedder: Embedder, features: np.ndarray) -> None:
        super().__init__(features)
        self._embedder = embedder

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """The nearest reference of every image."""
        return super().compare(self._embedder.embed(images, progress), excluded)


BATCH = 16  # images whose poses are aligned together
N_VOTED, N_LIKELY, N_ALIGNED = 96, 32, 10  # whole images: poses that are aligned for a few steps, for all, and further
N_IN_PLACE = 4  # of each kind of search without a shift
N_PARTS_VOTED, N_FINE_PARTS_VOTED, N_PARTS = 24, 8, 4
N_FIRST_STEPS, N_STEPS = 3, 8
N_BENT = 3  # poses that are bent as well: those whose middle detail agrees best at most places
BENT_BY = [POSED_NAMES.index(name) for name in ("0.7 to 1.6 px, best 50 %", "1.2 to 3 px, best 100 %")]


class RegisteredReferences:
    """Maps and cells of the references: images are searched for among them, aligned with them and compared."""

    def __init__(self, references: np.ndarray) -> None:
        from memorization.registration import maps, search
        from memorization.registration.agreement import Agreement

        pixels = maps.grey(references)
        self._pixels, self._low, self._middle = pixels, maps.low_map(pixels), maps.middle_map(pixels)
        self._shortlist = search.Shortlist(pixels)
        self._whole, self._place = search.WholeSearch(pixels), search.PlaceSearch(pixels)
        self._parts, self._fine_parts = (search.PartSearch(pixels, look) for look in (search.MIDDLE, search.FINE))
        self._agreement = Agreement(pixels)

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """The best of every statistic over the poses found, and the reference it belongs to.

        Blocks of images run at the same time, each on one of the threads that PyTorch may use: the operations are too
        small to be split over threads themselves.
        """
        import torch

        from memorization.registration.maps import grey

        def compared(block: slice) -> Likeness:
            with torch.inference_mode():  # holds for one thread
                return self._compare(grey(images[block]), allowed[block])

        keep_freed_memory()
        allowed = torch.ones(len(images), len(self._pixels), dtype=torch.bool)
        if excluded is not None:
            allowed = torch.from_numpy(~excluded)
        blocks = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
        parts = [Likeness(np.zeros((0, len(NAMES))), np.zeros((0, len(NAMES)), np.int64))]
        with single_threaded_operations() as n_threads, ThreadPoolExecutor(n_threads) as pool:
            for block, part in zip(blocks, pool.map(compared, blocks), strict=True):
                parts.append(part)
                progress(min(block.stop, len(images)), len(images), "images")
        return joined(parts, axis=0)

    def _compare(self, pixels: torch.Tensor, allowed: torch.Tensor) -> Likeness:
        """Search, align and measure images (m, 1, 64, 64) against the references ``allowed`` (m, n)."""
        import torch

        from memorization.registration.maps import align, bend, joined, low_map, middle_map

        # search: candidate poses of every image as a whole, in place, and by its parts
        whole: list[Poses] = []
        in_place: list[Poses] = []
        parts: list[Poses] = []
        for query in range(len(pixels)):
            one, may = pixels[query : query + 1], allowed[query]
            chosen = self._shortlist.choose(one, may)
            whole.append(self._whole.votes(one, query, N_VOTED, chosen))
            in_place += self._place.votes(one, query, N_IN_PLACE, may)
            parts.append(self._parts.votes(one, query, N_PARTS_VOTED, chosen, may))
            parts.append(self._fine_parts.votes(one, query, N_FINE_PARTS_VOTED, chosen, may))
        # align: whole images on coarse maps, a few steps for all and more for the likely ones
        low, aligned = low_map(pixels), joined(whole)
        for n_steps, n_best in ((N_FIRST_STEPS, N_LIKELY), (N_STEPS, N_ALIGNED)):
            aligned, agreement = align(low[aligned.query], self._low[aligned.reference], aligned, n_steps)
            best_aligned = aligned.at(_best_of_each(aligned.query, agreement, 1))
            aligned = aligned.at(_best_of_each(aligned.query, agreement, n_best))
        # then the best of them, and the parts whose fine detail agrees best, on finer maps
        found = joined(parts)
        likely = self._agreement.of_a_part(pixels[found.query], found, allowed[found.query])
        part = found.at(_best_of_each(found.query, likely, N_PARTS))
        fine = joined([aligned, part])
        finer, _ = align(middle_map(pixels)[fine.query], self._middle[fine.reference], fine, N_STEPS)
        poses = joined([finer, best_aligned, *in_place, part])
        # measure every pose, and the best ones once more after a smooth bend
        posed = self._agreement.measure(pixels[poses.query], poses, allowed[poses.query]).to(torch.float64)
        bent_poses = poses.at(_best_of_each(poses.query, posed[:, BENT_BY].sum(1), N_BENT))
        queries, may = pixels[bent_poses.query], allowed[bent_poses.query]
        field = bend(queries, self._pixels[bent_poses.reference], bent_poses)
        bent = self._agreement.measure_bent(queries, bent_poses, field, may).to(torch.float64)
        # the largest of every statistic over the poses of each image, and the reference it belongs to
        values = torch.zeros(len(pixels), len(NAMES), dtype=torch.float64)
        nearest = torch.zeros(len(pixels), len(NAMES), dtype=torch.int64)
        of_posed, of_bent = slice(len(POSED_NAMES)), slice(len(POSED_NAMES), len(NAMES))
        for columns, measured, measured_poses in ((of_posed, posed, poses), (of_bent, bent, bent_poses)):
            for query in range(len(pixels)):
                own = (measured_poses.query == query).nonzero()[:, 0]
                if len(own):
                    values[query, columns], position = measured[own].max(0)
                    nearest[query, columns] = measured_poses.reference[own][position]
        return Likeness(values.numpy(), nearest.numpy())


# sees copies under any similarity or affine map, photometric change, negative, occlusion, blend or paste
REGISTRATION = Scorer("registration", NAMES, RegisteredReferences)


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


def _best_of_each(query: torch.Tensor, agreement: torch.Tensor, n_best: int) -> torch.Tensor:
    """Positions of the ``n_best`` poses of every query."""
    import torch

    order = torch.argsort(agreement, descending=True, stable=True)
    order = order[torch.argsort(query[order], stable=True)]
    counts = torch.bincount(query)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[query[order]]
    return order[rank < n_best]
