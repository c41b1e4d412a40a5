"""The audit of what a site wants to share: figures of leakage, exposure of its patients, gates, one verdict."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import atomic_path
from common.seeds import derive_seed
from memorization.gates import LESS_COPYING, AuditedFigures, Gate, GatesConfig, PlantedRecall, judge
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.exposure import (
    ExposureSummary,
    PatientExposure,
    exposures,
    largest_exposure,
    summarise_exposure,
)
from memorization.leakage.metrics import METRICS, Metric, Unmeasured, measure_each

log = logging.getLogger(__name__)

MAX_AUDITED = 1000  # synthetic images, drawn with a seed: what the figures cost grows with them, what they say hardly
EXPOSURE = METRICS[0].name  # the only figure that needs no held-out images
NO_HELDOUT = Unmeasured("no held-out patients", "set generator.train_on=train")
NONE_KEPT = Unmeasured("the filter dropped every image", LESS_COPYING)
PASSED, REFUSED, NOT_ENFORCED = "passed", "refused", "failed, not enforced"


@dataclass(frozen=True)
class AuditImages:
    """Features of the images of a site; held-out ones are of patients whom the generator never saw."""

    train: np.ndarray
    train_patients: Sequence[str]
    heldout: np.ndarray
    heldout_patients: Sequence[str]
    kept: np.ndarray


@dataclass(frozen=True)
class AuditedFigure:
    """A figure of the table as JSON holds it; numbers that are not there are None, and ``reason`` says why."""

    name: str
    says: str
    safer: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    p: float | None = None
    interval: str = ""
    test: str = ""
    reason: str = ""
    what_would_help: str = ""


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
        return tuple(gate for gate in self.gates if not gate.passed)


def audit(
    images: AuditImages,
    n_sampled: int,
    config: GatesConfig,
    seed: int,
    planted: PlantedRecall | None = None,
) -> tuple[SiteAudit, tuple[PatientExposure, ...]]:
    """Measure, judge, and say who is exposed how much; the second part names patients.

    Where no image was kept the verdict is a refusal, enforced or not: there is nothing to export.

    Args:
        n_sampled: images that the filter judged: kept, dropped, and sampled in place of dropped ones.
        planted: what the filter in use found of planted copies; None: none were planted.
    """
    n_kept = len(images.kept)
    audited = images.kept[_drawn(n_kept, seed)]
    of_patients = exposures(images.train, images.train_patients, audited) if n_kept else ()
    measured = _measured(images, audited, seed)
    if n_kept:
        measured[EXPOSURE] = largest_exposure(of_patients)
    n_train_patients, n_heldout_patients = len(set(images.train_patients)), len(set(images.heldout_patients))
    figures = AuditedFigures(n_sampled, n_sampled - n_kept, n_train_patients, n_heldout_patients, measured, planted)
    gates = judge(figures, config)
    failed = [gate for gate in gates if not gate.passed]
    for gate in failed:
        log.warning("%s: %s", gate.name, gate.reason)
    result = SiteAudit(
        verdict=PASSED if not failed else REFUSED if config.enforce or not n_kept else NOT_ENFORCED,
        enforced=config.enforce,
        familywise_level=config.familywise_level,
        n_train_images=len(images.train),
        n_train_patients=n_train_patients,
        n_heldout_images=len(images.heldout),
        n_heldout_patients=n_heldout_patients,
        n_sampled=n_sampled,
        n_kept=n_kept,
        n_dropped=n_sampled - n_kept,
        n_audited=len(audited),
        figures=_recorded(measured),
        exposure=summarise_exposure(of_patients) if n_kept else None,
        planted=planted,
        gates=gates,
    )
    return result, of_patients


def write_exposure(path: Path, of_patients: Sequence[PatientExposure]) -> None:
    """One row a patient, most exposed first. It names patients, so it stays at the site."""
    ordered = sorted(of_patients, key=lambda exposure: (-exposure.n_nearest, exposure.patient))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["patient", "n_images", "n_nearest", "smallest_distance_l2"])
        writer.writerows([one.patient, one.n_images, one.n_nearest, repr(one.smallest_distance_l2)] for one in ordered)


def _drawn(n: int, seed: int) -> np.ndarray:
    """Positions of at most ``MAX_AUDITED`` images."""
    if n <= MAX_AUDITED:
        return np.arange(n)
    drawn = np.random.default_rng(derive_seed(seed, "audited")).choice(n, MAX_AUDITED, replace=False)
    return np.sort(drawn)


def _measured(images: AuditImages, audited: np.ndarray, seed: int) -> dict[str, MetricResult | Unmeasured]:
    if not len(audited):
        return {metric.name: NONE_KEPT for metric in METRICS}
    if not len(images.heldout):
        return {metric.name: NO_HELDOUT for metric in METRICS}
    try:
        evidence = Evidence(
            images.train,
            images.train_patients,
            images.heldout,
            images.heldout_patients,
            audited,
            derive_seed(seed, "leakage"),
        )
    except InputError as error:
        return {metric.name: Unmeasured(error.problem, error.fix) for metric in METRICS}
    return measure_each(evidence)


def _recorded(measured: Mapping[str, MetricResult | Unmeasured]) -> tuple[AuditedFigure, ...]:
    return tuple(_record(metric, measured[metric.name]) for metric in METRICS)


def _record(metric: Metric, figure: MetricResult | Unmeasured) -> AuditedFigure:
    described = partial(AuditedFigure, metric.name, metric.says, metric.direction)
    if isinstance(figure, Unmeasured):
        return described(reason=figure.reason, what_would_help=figure.what_would_help)
    return described(
        value=_finite(figure.value),
        low=_finite(figure.low),
        high=_finite(figure.high),
        baseline=_finite(figure.baseline),
        p=_finite(figure.p),
        interval=figure.interval,
        test=figure.test,
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
