"""Which patients the generated images lie next to.

``PatientExposure`` names a patient and stays at the site; ``ExposureSummary`` names none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.resampling import clopper_pearson
from features.index import nearest
from memorization.leakage.evidence import CANDIDATES, Evidence, MetricResult

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PatientExposure:
    """One patient: how many generated images have their nearest training image among theirs, and how near."""

    patient: str
    n_images: int  # training images of the patient
    n_nearest: int
    smallest_distance_l2: float  # squared, of any generated image to any of theirs


@dataclass(frozen=True)
class ExposureSummary:
    """All patients together, without names; quantiles 0, .25, .5, .75 and 1 over patients."""

    n_patients: int
    n_exposed: int  # with at least one generated image nearest
    largest_share: float  # of the generated images, nearest to one patient
    n_nearest: tuple[float, ...]
    smallest_distance_l2: tuple[float, ...]


def exposures(train: np.ndarray, patients: Sequence[str], generated: np.ndarray) -> tuple[PatientExposure, ...]:
    """Every training patient, by name."""
    owner = np.asarray(patients)
    closest = owner[nearest(train, generated, CANDIDATES)[1][:, 0]]
    reached = nearest(generated, train, CANDIDATES)[0][:, 0]
    return tuple(
        PatientExposure(
            str(name), int((owner == name).sum()), int((closest == name).sum()), float(reached[owner == name].min())
        )
        for name in np.unique(owner)
    )


def summarise_exposure(exposures: Sequence[PatientExposure]) -> ExposureSummary:
    """What may leave the site."""
    counts = np.array([exposure.n_nearest for exposure in exposures])
    distances = np.array([exposure.smallest_distance_l2 for exposure in exposures])
    return ExposureSummary(
        n_patients=len(exposures),
        n_exposed=int((counts > 0).sum()),
        largest_share=float(counts.max() / counts.sum()),
        n_nearest=tuple(float(value) for value in np.quantile(counts, QUANTILES)),
        smallest_distance_l2=tuple(float(value) for value in np.quantile(distances, QUANTILES)),
    )


def exposure_figure(evidence: Evidence) -> MetricResult:
    """``largest_exposure`` of the evidence."""
    return largest_exposure(exposures(evidence.train, evidence.train_patients, evidence.generated))


def largest_exposure(of_patients: Sequence[PatientExposure]) -> MetricResult:
    """The largest share of generated images nearest to one patient; the baseline is their share of the images."""
    most = max(of_patients, key=lambda exposure: exposure.n_nearest)
    n_generated = sum(exposure.n_nearest for exposure in of_patients)
    return MetricResult(
        most.n_nearest / n_generated,
        *clopper_pearson(most.n_nearest, n_generated),
        interval="Clopper-Pearson, of that patient's share",
        baseline=most.n_images / sum(exposure.n_images for exposure in of_patients),
    )
