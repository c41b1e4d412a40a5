"""The measures of leakage as one table, of which reports and docs/leakage.md are made."""

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
    """One measure of leakage; ``ideal`` is its value where nothing is copied, NaN where that depends on the data."""

    name: str
    says: str
    direction: str  # of the safer values: "higher" or "lower"
    unit: str
    source: str
    cannot_say: str
    measure: Callable[[Evidence], MetricResult]
    lower: float = -math.inf
    upper: float = math.inf
    ideal: float = 0.0


METRICS = (
    Metric(
        "largest exposure",
        "Share of generated images whose nearest training image is of one and the same patient, the largest of all.",
        "lower",
        "share of images",
        "count; without copies about the patient's share of the training images",
        "Images in the middle of the data are near to many others without being copied.",
        exposure_figure,
        lower=0.0,
        upper=1.0,
        ideal=math.nan,
    ),
    Metric(
        "closest-record share",
        "Share of generated images nearer to a training image than to as many images of other patients.",
        "lower",
        "share of images",
        "SDMetrics, DCROverfittingProtection",
        "A few copies among thousands of images hardly change it.",
        closest_record_figure,
        lower=0.0,
        upper=1.0,
        ideal=0.5,
    ),
    Metric(
        "AuthPct over held-out",
        "Percentage of generated images farther from their nearest training image than that is from any other, minus "
        "the same percentage of the held-out images.",
        "higher",
        "percentage points",
        "Alaa et al. 2022, eq. 7, generated minus held-out",
        "Patients with near-duplicate images hide copies, and so do copies that are noisy.",
        authenticity_figure,
        lower=-100.0,
        upper=100.0,
    ),
    Metric(
        "C_T",
        "Standard errors by which generated images are farther from the training images than held-out ones are.",
        "higher",
        "standard errors",
        "Meehan et al. 2020, as in dgm-eval",
        "Poor images raise it and can hide copies; it grows with the number of images.",
        copying_figure,
    ),
    Metric(
        "Fréchet gap",
        "How much nearer the generated distribution is to the training images than to held-out ones.",
        "lower",
        "squared feature distance",
        "Heusel et al. 2017, held-out minus training",
        "Means and covariances only: copies of a diverse half go unseen.",
        frechet_gap_figure,
    ),
    Metric(
        "FLD gap",
        "How much less likely held-out images are than training images under a mixture centred at generated images.",
        "higher",
        "nats per 100 features",
        "Jiralerspong et al. 2023, 100 (NLL train - NLL held-out) / dimension",
        "Its variances are fitted to the training images, so that a generator without copies is a little below 0.",
        likelihood_gap_figure,
    ),
    Metric(
        "NNAA privacy loss",
        "How much better generated images are told from held-out images than from training images.",
        "lower",
        "difference of accuracies",
        "Yale et al. 2020, NNAA(H, G) - NNAA(T, G)",
        "An image and its near-duplicate of the same patient look like a copy each.",
        privacy_loss_figure,
        lower=-1.0,
        upper=1.0,
    ),
    Metric(
        "membership AUC",
        "Area under the curve of the best membership attack, minus that between two parts of the members.",
        "lower",
        "area over the control",
        "GAN-Leaks, Monte Carlo, DOMIAS; control: member against member",
        "A stronger attack may exist; an average over patients hides the few who are exposed.",
        membership_figure,
        lower=-1.0,
        upper=1.0,
    ),
    Metric(
        "membership TPR",
        "Share of members the best attack finds at 1 % false alarms, minus that between two parts of the members.",
        "lower",
        "rate over the control",
        "Carlini et al. 2022, same attacks and control",
        "Below 100 held-out images 1 % means not one false alarm, and the interval is wide.",
        true_positive_figure,
        lower=-1.0,
        upper=1.0,
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
