"""The audit of what a site wants to share: planted copies, figures of leakage, gates, one verdict."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import atomic_path, write_json
from common.progress import Progress, silent
from common.resampling import clopper_pearson
from common.seeds import derive_seed
from common.settings import to_dict
from memorization.audited_figures import AuditedFigure, recorded
from memorization.filter import SiteFilter
from memorization.gates import LESS_COPYING, AuditedFigures, Gate, GatesConfig, PlantedRecall, judge, verdict_of
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.exposure import (
    ExposureSummary,
    PatientExposure,
    exposures,
    largest_exposure,
    summarise_exposure,
)
from memorization.leakage.metrics import METRICS, Unmeasured, measure_each
from memorization.pictures import draw_shares
from memorization.planted.copies import KINDS, Condition, Kind, plant

log = logging.getLogger(__name__)

MAX_AUDITED = 1000  # synthetic images, drawn with a seed: more cost time and add little precision
COPIES_AT_ONCE = 16  # judged together, as registration does; progress is reported after each batch
EXPOSURE = METRICS[0].name  # the only figure that needs no held-out images
NO_HELDOUT = Unmeasured("no held-out patients", "set generator.train_on=train")
NONE_KEPT = Unmeasured("the filter dropped every image", LESS_COPYING)

Judge = Callable[[np.ndarray], np.ndarray]
"""From images (m, channels, height, width) to what the filter drops of them (m,)."""


@dataclass(frozen=True)
class AuditImages:
    """Features of the images of a site; held-out ones are of patients whom the generator never saw."""

    train: np.ndarray
    train_patients: Sequence[str]
    heldout: np.ndarray
    heldout_patients: Sequence[str]
    kept: np.ndarray


@dataclass(frozen=True)
class OwnedImages:
    """``images`` (n, channels, height, width), integers, and the patient of each."""

    images: np.ndarray
    patients: Sequence[str]


@dataclass(frozen=True)
class StrengthFound(Condition):
    """``found`` of ``n`` copies of a kind at one strength."""

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
    """What the filter drops of real images, each compared with images of other patients alone."""

    n: int
    dropped: int
    interval: tuple[float, float]  # 95 % Clopper-Pearson; too narrow, as images of one patient are not independent
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


@dataclass(frozen=True)
class SiteAudit:
    """``audit.json``. It holds the numbers of real images and patients and stays at the site."""

    verdict: str
    enforced: bool
    familywise_level: float
    n_train_images: int
    n_train_patients: int
    n_heldout_images: int
    n_heldout_patients: int
    n_sampled: int
    n_kept: int
    n_dropped: int
    n_audited: int
    figures: tuple[AuditedFigure, ...]
    exposure: ExposureSummary | None  # None: no image was kept
    planted: PlantedRecall | None  # None: no copies were planted
    gates: tuple[Gate, ...]

    @property
    def failed(self) -> tuple[Gate, ...]:
        """The gates that the site did not pass, enforced or not."""
        return tuple(gate for gate in self.gates if gate.failed)


@dataclass(frozen=True)
class AuditOutcome:
    """The audit, the exposure of each patient (it names them), and the planted copies; None: none were planted."""

    audit: SiteAudit
    exposures: tuple[PatientExposure, ...]
    planted: PlantedAudit | None = None


def audit(
    images: AuditImages,
    n_sampled: int,
    config: GatesConfig,
    seed: int,
    own: SiteFilter | None = None,
    others: OwnedImages | None = None,
    progress: Progress = silent,
) -> AuditOutcome:
    """Plant copies for the filter to find, measure leakage, judge.

    Where no image was kept the verdict is a refusal, enforced or not: there is nothing to export.

    Args:
        n_sampled: images that the filter judged: kept, dropped, and sampled in place of dropped ones.
        own: the filter in use, to judge copies of its own references; None: no copies are planted.
        others: real images of held-out patients, to mix copies with; the references where nobody is held out.
    """
    # 1. Planted copies: nothing is split, so what is measured is the very filter that let the synthetic images pass.
    planted = None
    if own is not None and config.n_planted_copies:
        references = OwnedImages(own.references.images, [str(entry.patient) for entry in own.references.entries])
        mixed_with = others if others is not None and len(others.images) else references
        found = find_planted(
            references,
            mixed_with,
            lambda copies: ~own.judge(copies).kept,
            config.n_planted_copies,
            seed,
            progress=progress,
        )
        real = real_drops(*own.judge_real(set(images.heldout_patients), images.heldout))
        planted = to_planted_audit(own.config.rule, own.config.embedder, own.level, len(own.references), found, real)
        log.info("%d of %d planted copies found, mean over kinds %.3f", planted.found, planted.n, planted.mean_recall)

    # 2. Leakage: every figure of the table, on at most MAX_AUDITED of the kept images; and who is exposed how much.
    n_kept = len(images.kept)
    drawn = np.arange(n_kept)
    if n_kept > MAX_AUDITED:
        drawn = np.sort(np.random.default_rng(derive_seed(seed, "audited")).choice(n_kept, MAX_AUDITED, replace=False))
    audited = images.kept[drawn]
    of_patients = exposures(images.train, images.train_patients, audited) if n_kept else ()
    measured = _measured(images, audited, derive_seed(seed, "leakage"))
    if n_kept:
        measured[EXPOSURE] = largest_exposure(of_patients)

    # 3. Gates and verdict.
    n_train_patients, n_heldout_patients = len(set(images.train_patients)), len(set(images.heldout_patients))
    recall, n_dropped = planted.recall if planted else None, n_sampled - n_kept
    figures = AuditedFigures(n_sampled, n_dropped, n_train_patients, n_heldout_patients, measured, recall)
    gates = judge(figures, config)
    for gate in gates:
        if gate.failed or not gate.is_measured:
            log.warning("%s: %s: %s", gate.name, gate.decision, gate.reason)
    result = SiteAudit(
        verdict=verdict_of(gates, config.enforce or not n_kept),
        enforced=config.enforce,
        familywise_level=config.familywise_level,
        n_train_images=len(images.train),
        n_train_patients=n_train_patients,
        n_heldout_images=len(images.heldout),
        n_heldout_patients=n_heldout_patients,
        n_sampled=n_sampled,
        n_kept=n_kept,
        n_dropped=n_dropped,
        n_audited=len(audited),
        figures=recorded(measured),
        exposure=summarise_exposure(of_patients) if n_kept else None,
        planted=recall,
        gates=gates,
    )
    return AuditOutcome(result, of_patients, planted)


def write_audit(folder: Path, outcome: AuditOutcome) -> None:
    """``audit.json``; ``exposure.csv``, one row a patient, most exposed first; ``planted.json`` and ``planted.png``.

    They name patients or hold numbers of them, so they stay at the site.
    """
    if outcome.planted is not None:
        rows: dict[str, list[tuple[float, str]]] = {kind.kind: [] for kind in outcome.planted.kinds}
        for one in outcome.planted.strengths:
            text = f"{one.strength:g} {one.unit}".strip() + f": {one.found}/{one.n}"
            rows[one.kind].append((one.found / one.n, text))
        draw_shares(folder / "planted.png", rows, "planted copies found at each strength: green all, red none")
        write_json(folder / "planted.json", to_dict(outcome.planted))
    ordered = sorted(outcome.exposures, key=lambda exposure: (-exposure.n_nearest, exposure.patient))
    with atomic_path(folder / "exposure.csv") as path, path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["patient", "n_images", "n_nearest", "smallest_distance_l2"])
        writer.writerows([one.patient, one.n_images, one.n_nearest, repr(one.smallest_distance_l2)] for one in ordered)
    write_json(folder / "audit.json", to_dict(outcome.audit))


def find_planted(
    references: OwnedImages,
    others: OwnedImages,
    judge: Judge,
    n_copies: int,
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    progress: Progress = silent,
) -> tuple[StrengthFound, ...]:
    """Plant ``n_copies`` of every kind and strength, and let the filter in use judge them.

    Args:
        references: what the filter compares with; originals are drawn from them, anew for every kind and strength.
        others: what blends and pastes mix with, always another patient's; the references themselves may be given.
        seed: of the stage; every draw follows from it and a name.
    """
    owners, owners_of_others = np.asarray(references.patients), np.asarray(others.patients)
    seed = derive_seed(seed, "planted copies")
    conditions = [(kind, strength) for kind in kinds for strength in kind.strengths]
    found: list[StrengthFound] = []
    at_once = max(1, COPIES_AT_ONCE // n_copies)
    for start in range(0, len(conditions), at_once):
        part, copies = conditions[start : start + at_once], []
        for kind, strength in part:
            rng = np.random.default_rng(derive_seed(seed, "planted", kind.name, strength))
            originals = rng.choice(len(owners), n_copies, replace=n_copies > len(owners))
            mixed = [rng.choice(np.flatnonzero(owners_of_others != owners[original])) for original in originals]
            changed_by = derive_seed(seed, "change", kind.name, strength)
            copies.append(plant(kind, strength, references.images[originals], others.images[mixed], changed_by))
        dropped = judge(np.concatenate(copies)).reshape(len(part), -1).sum(axis=1)
        for (kind, strength), n_found in zip(part, dropped, strict=True):
            found.append(StrengthFound(kind.name, kind.group, strength, kind.unit, n_copies, int(n_found)))
        progress(len(found) * n_copies, len(conditions) * n_copies, "copies")
    return tuple(found)


def to_planted_audit(
    rule: str, embedder: str, level: float, n_references: int, found: Sequence[StrengthFound], real: RealDrops | None
) -> PlantedAudit:
    """All figures of a filter from what it found at every strength."""
    kinds = []
    for name in dict.fromkeys(one.kind for one in found):  # in the order given
        of_kind = [one for one in found if one.kind == name]
        n, n_found = sum(one.n for one in of_kind), sum(one.found for one in of_kind)
        kinds.append(KindFound(name, of_kind[0].group, n, n_found, n_found / n, clopper_pearson(n_found, n)))
    n, n_found = sum(kind.n for kind in kinds), sum(kind.found for kind in kinds)
    return PlantedAudit(
        rule=rule,
        embedder=embedder,
        level=level,
        n_references=n_references,
        n_copies=found[0].n,
        n=n,
        found=n_found,
        interval=clopper_pearson(n_found, n),
        mean_recall=float(np.mean([kind.recall for kind in kinds])),
        kinds=tuple(kinds),
        strengths=tuple(found),
        honest=real,
    )


def real_drops(dropped: np.ndarray, judged: str) -> RealDrops | None:
    """From verdicts (n,) on real images; None where there are none."""
    n, n_dropped = len(dropped), int(dropped.sum())
    return RealDrops(n, n_dropped, clopper_pearson(n_dropped, n), judged) if n else None


def _measured(images: AuditImages, audited: np.ndarray, seed: int) -> dict[str, MetricResult | Unmeasured]:
    """Every figure of the table, or why it is missing."""
    missing = NO_HELDOUT if len(audited) else NONE_KEPT
    if len(audited) and len(images.heldout):
        try:
            real = (images.train, images.train_patients, images.heldout, images.heldout_patients)
            return measure_each(Evidence(*real, audited, seed))
        except InputError as error:
            missing = Unmeasured(error.problem, error.fix)
    return {metric.name: missing for metric in METRICS}
