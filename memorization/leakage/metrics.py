"""The measures of leakage as one table, of which the report is made; docs/leakage.md says more of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import InputError
from memorization.leakage.adversarial_accuracy import privacy_loss_figure
from memorization.leakage.authenticity import authenticity_figure
from memorization.leakage.closest_records import closest_record_figure
from memorization.leakage.copying import copying_figure
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.exposure import exposure_figure
from memorization.leakage.generalization import frechet_gap_figure
from memorization.leakage.likelihood import likelihood_gap_figure
from memorization.leakage.membership import membership_figure, true_positive_figure


@dataclass(frozen=True)
class Unmeasured:
    """Why a figure could not be measured, and the way out."""

    reason: str
    what_would_help: str


@dataclass(frozen=True)
class Metric:
    """One measure of leakage; what it cannot say, and where it is from: docs/leakage.md."""

    name: str
    says: str
    direction: str  # of the safer values: "higher" or "lower"
    measure: Callable[[Evidence], MetricResult]
    bounds: tuple[float, float] = (-math.inf, math.inf)


METRICS = (
    Metric(
        "largest exposure",
        "Share of generated images whose nearest training image is of one and the same patient, the largest of all.",
        "lower",
        exposure_figure,
        (0.0, 1.0),
    ),
    Metric(
        "closest-record share",
        "Share of generated images nearer to a training image than to as many images of other patients.",
        "lower",
        closest_record_figure,
        (0.0, 1.0),
    ),
    Metric(
        "AuthPct",
        "Percentage of generated images farther from their nearest training image than that is from any other.",
        "higher",
        authenticity_figure,
        (0.0, 100.0),
    ),
    Metric(
        "C_T",
        "Standard errors by which generated images are farther from the training images than held-out ones are.",
        "higher",
        copying_figure,
    ),
    Metric(
        "Fréchet gap",
        "How much nearer the generated distribution is to the training images than to held-out ones.",
        "lower",
        frechet_gap_figure,
    ),
    Metric(
        "FLD gap",
        "How much less likely held-out images are than training images under a mixture centred at generated images.",
        "higher",
        likelihood_gap_figure,
    ),
    Metric(
        "NNAA privacy loss",
        "How much better generated images are told from held-out images than from training images.",
        "lower",
        privacy_loss_figure,
        (-1.0, 1.0),
    ),
    Metric(
        "membership AUC",
        "Area under the curve of the best membership attack, minus that between two parts of the members.",
        "lower",
        membership_figure,
        (-1.0, 1.0),
    ),
    Metric(
        "membership TPR",
        "Share of members the best attack finds at 1 % false alarms, minus that between two parts of the members.",
        "lower",
        true_positive_figure,
        (-1.0, 1.0),
    ),
)


def measure_each(evidence: Evidence) -> dict[str, MetricResult | Unmeasured]:
    """Every figure of the table by its name, or why this evidence does not allow it."""
    measured: dict[str, MetricResult | Unmeasured] = {}
    for metric in METRICS:
        try:
            measured[metric.name] = metric.measure(evidence)
        except InputError as error:
            measured[metric.name] = Unmeasured(error.problem, error.fix)
    return measured
