"""The planted-copy audit of a site: its filter, set as it is in use, judges copies of its own references.

``planted_audit`` compares filters on a split of its own. Here nothing is split: what is measured is the very filter
that let the site's synthetic images pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.progress import Progress, silent
from common.resampling import clopper_pearson
from common.seeds import derive_seed
from memorization.gates import PlantedRecall
from memorization.planted.copies import KINDS, Kind, plant

COPIES_AT_ONCE = 16  # judged together, as registration does; progress is told after each

Judge = Callable[[np.ndarray], np.ndarray]
"""From images (m, channels, height, width) to what the filter drops of them (m,)."""


@dataclass(frozen=True)
class OwnedImages:
    """``images`` (n, channels, height, width), integers, and the patient of each."""

    images: np.ndarray
    patients: Sequence[str]


@dataclass(frozen=True)
class StrengthFound:
    """``found`` of ``n`` copies of a kind at one strength."""

    kind: str
    group: str
    strength: float
    unit: str
    n: int
    found: int


@dataclass(frozen=True)
class KindFound:
    """``found`` of ``n`` copies of a kind, all strengths, with the 95 % Clopper-Pearson interval of the recall."""

    kind: str
    group: str
    n: int
    found: int
    recall: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class RealDrops:
    """What the filter drops of real images, each compared with images of other patients alone.

    The 95 % Clopper-Pearson interval takes images for independent; those of one patient are not, and it is too narrow.
    """

    n: int
    dropped: int
    interval: tuple[float, float]
    judged: str  # which images, and by which calibration


@dataclass(frozen=True)
class PlantedAudit:
    """``planted.json``. It holds the number of real images, and stays at the site."""

    rule: str
    embedder: str
    level: float
    n_references: int
    n_copies: int  # of each kind and strength
    n: int
    found: int
    interval: tuple[float, float]  # of the share found of all copies
    mean_recall: float  # over kinds
    kinds: tuple[KindFound, ...]
    strengths: tuple[StrengthFound, ...]
    honest: RealDrops | None  # None: no image of another patient to judge

    @property
    def recall(self) -> PlantedRecall:
        """What the gates look at."""
        missed = sorted((kind for kind in self.kinds if kind.found < kind.n), key=lambda kind: kind.recall)
        share = None if self.honest is None else self.honest.dropped / self.honest.n
        return PlantedRecall(self.n, self.found, self.mean_recall, tuple(kind.kind for kind in missed), share)


def find_planted(
    references: OwnedImages,
    beside: OwnedImages,
    judge: Judge,
    n_copies: int,
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    progress: Progress = silent,
) -> tuple[StrengthFound, ...]:
    """Plant ``n_copies`` of every kind and strength, and let the filter in use judge them.

    Args:
        references: what the filter compares with; originals are drawn from them, anew for every kind and strength.
        beside: what blends and pastes mix with, always another patient's; the references themselves may be given.
    """
    conditions = [(kind, strength) for kind in kinds for strength in kind.strengths]
    at_once, n_done = max(1, COPIES_AT_ONCE // n_copies), 0
    found: list[StrengthFound] = []
    for start in range(0, len(conditions), at_once):
        part = conditions[start : start + at_once]
        copies = list(_planted(part, references, beside, n_copies, seed))
        dropped = judge(np.concatenate(copies)).reshape(len(part), n_copies).sum(axis=1)
        for (kind, strength), n_found in zip(part, dropped, strict=True):
            found.append(StrengthFound(kind.name, kind.group, strength, kind.unit, n_copies, int(n_found)))
        n_done += len(part) * n_copies
        progress(n_done, len(conditions) * n_copies, "copies")
    return tuple(found)


def to_planted_audit(
    rule: str,
    embedder: str,
    level: float,
    n_references: int,
    found: Sequence[StrengthFound],
    honest: RealDrops | None,
) -> PlantedAudit:
    """All figures of a filter from what it found at every strength."""
    kinds = _by_kind(found)
    n, n_found = sum(kind.n for kind in kinds), sum(kind.found for kind in kinds)
    return PlantedAudit(
        *(rule, embedder, level, n_references),
        n_copies=found[0].n,
        n=n,
        found=n_found,
        interval=clopper_pearson(n_found, n),
        mean_recall=float(np.mean([kind.recall for kind in kinds])),
        kinds=kinds,
        strengths=tuple(found),
        honest=honest,
    )


def _by_kind(strengths: Sequence[StrengthFound]) -> tuple[KindFound, ...]:
    """The strengths of a kind together, in the order given."""
    kinds: dict[str, list[StrengthFound]] = {}
    for one in strengths:
        kinds.setdefault(one.kind, []).append(one)
    together = []
    for kind, of_kind in kinds.items():
        n, found = sum(one.n for one in of_kind), sum(one.found for one in of_kind)
        together.append(KindFound(kind, of_kind[0].group, n, found, found / n, clopper_pearson(found, n)))
    return tuple(together)


def real_drops(dropped: np.ndarray, judged: str) -> RealDrops | None:
    """From verdicts (n,) on honest images; None where there are none."""
    n, n_dropped = len(dropped), int(dropped.sum())
    return RealDrops(n, n_dropped, clopper_pearson(n_dropped, n), judged) if n else None


def _planted(
    conditions: Sequence[tuple[Kind, float]], references: OwnedImages, beside: OwnedImages, n_copies: int, seed: int
) -> Iterator[np.ndarray]:
    owners, others = np.asarray(references.patients), np.asarray(beside.patients)
    for kind, strength in conditions:
        rng = np.random.default_rng(derive_seed(seed, "planted", kind.name, strength))
        originals = rng.choice(len(owners), n_copies, replace=n_copies > len(owners))
        mixed = [rng.choice(np.flatnonzero(others != owners[original])) for original in originals]
        changed_by = derive_seed(seed, "change", kind.name, strength)
        yield plant(kind, strength, references.images[originals], beside.images[mixed], changed_by)
