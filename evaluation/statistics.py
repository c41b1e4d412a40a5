"""Means, intervals, tests and verdicts whose unit is the patient; ``docs/statistics.md`` says what each of them means.

A patient's score is the mean over their images. A label's value is the mean over the patients who have it, and the
value of a model is the mean over labels. Where there are several folds, every patient was tested by the network of
their fold. The methods were chosen by simulation: ``python -m studies.interval_simulation``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from evaluation.segmentation import METRICS

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95
MIN_PATIENTS_OF_MEAN = 10  # with fewer, the interval of a mean is not shown: it would not hold its level
MIN_PATIENTS_OF_DIFFERENCE = 6  # with fewer, no two-sided test of signs can reach p < 0.05: its smallest is 2 / 2**n
GAIN, LOSS, UNCLEAR = "a gain", "a loss", "no clear difference"
UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class Scores:
    """What one model scored on one site's test images, or the difference of two models: a row an image and seed."""

    values: np.ndarray  # (n_rows, n_labels); NaN: undefined
    patients: np.ndarray  # (n_rows,), as the two below
    folds: np.ndarray
    seeds: np.ndarray

    def without_undefined(self) -> Scores:
        """Without the rows in which no label has a score."""
        kept = ~np.isnan(self.values).all(axis=1)
        return Scores(self.values[kept], self.patients[kept], self.folds[kept], self.seeds[kept])

    def minus(self, other: Scores) -> Scores:
        """The difference in every row; both hold the same rows."""
        return Scores(self.values - other.values, self.patients, self.folds, self.seeds)


@dataclass(frozen=True)
class Estimate:
    """A mean over patients, and how uncertain it is.

    ``parts``: (variance of the mean, degrees of freedom) of each source that counts: the patients, and, with several
    seeds, the trainings. ``n_patients`` is that of the rarest label.
    """

    mean: float
    parts: tuple[tuple[float, int], ...]
    n_patients: int
    n_seeds: int = 1

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return math.sqrt(sum(variance for variance, _ in self.parts)) if self.parts else math.nan

    @property
    def degrees_of_freedom(self) -> float:
        """Of all parts together (Satterthwaite 1946)."""
        total = sum(variance for variance, _ in self.parts)
        if not total:
            return float(min((n for _, n in self.parts), default=0))
        return total**2 / sum(variance**2 / n for variance, n in self.parts)


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; ``kind`` says how it was made, or why there is none (then the bounds are NaN)."""

    mean: float
    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Judgement:
    """A difference that was judged together with others.

    ``interval`` and ``p`` (two-sided, NaN where there is none) are corrected for the number of comparisons by the same
    rule (Bonferroni), so that the interval leaves out 0 exactly where ``p`` is below 0.05. ``verdict`` is one of
    ``GAIN``, ``LOSS`` and ``UNCLEAR``, or says why there is none.
    """

    interval: Interval
    p: float
    verdict: str
    n_patients: int


def nan_mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean without the NaNs; NaN, without a warning, where nothing is left."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(defined, values, 0.0).sum(axis=axis) / defined.sum(axis=axis))


def estimate(scores: Scores) -> Estimate:
    """The mean over patients, then over labels, with the variance that patients and trainings give it."""
    scores = scores.without_undefined()
    n_seeds = len(np.unique(scores.seeds))
    # a patient's score is the mean over their images (and seeds); labels and patients without any score are left out
    by_patient = _means_of_groups(scores.values, scores.patients)
    defined = ~np.isnan(by_patient)
    by_patient = by_patient[defined.any(axis=1)][:, defined.any(axis=0)]
    if not by_patient.size:
        return Estimate(math.nan, (), 0, n_seeds)
    defined = ~np.isnan(by_patient)
    n_of_label, of_label = defined.sum(axis=0), nan_mean(by_patient, axis=0)
    # what each patient moves the mean by: the labels of one patient move together
    moves = np.where(defined, by_patient - of_label, 0.0) / n_of_label
    n_patients = int(n_of_label.min())
    if n_patients < 2:
        return Estimate(float(of_label.mean()), (), n_patients, n_seeds)
    variance = float((moves.mean(axis=1) ** 2).sum()) * n_patients / (n_patients - 1)
    parts = ((variance, n_patients - 1), *_parts_of_trainings(scores))
    return Estimate(float(of_label.mean()), parts, n_patients, n_seeds)


def _parts_of_trainings(scores: Scores) -> Iterable[tuple[float, int]]:
    """What the seeds of each fold's training add, where there are several: the variance of their mean."""
    for fold in np.unique(scores.folds):
        of_fold = scores.folds == fold
        seeds = np.unique(scores.seeds[of_fold])
        if len(seeds) < 2:
            continue
        by_seed = [_mean(scores, of_fold & (scores.seeds == seed)) for seed in seeds]
        # the fold's share of the mean is that of its patients
        share = len(np.unique(scores.patients[of_fold])) / len(np.unique(scores.patients))
        yield share**2 * float(np.var(by_seed, ddof=1)) / len(seeds), len(seeds) - 1


def seed_spread(scores: Scores) -> float:
    """Standard deviation over seeds of the mean over patients; NaN for one seed."""
    seeds = np.unique(scores.seeds)
    if len(seeds) < 2:
        return math.nan
    return float(np.std([_mean(scores, scores.seeds == seed) for seed in seeds], ddof=1))


def _mean(scores: Scores, chosen: np.ndarray) -> float:
    """Of the chosen rows: over images, patients and labels, in this order."""
    return float(nan_mean(nan_mean(_means_of_groups(scores.values[chosen], scores.patients[chosen]), axis=0)))


def _means_of_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means of the rows of each group, NaN left out; (n_groups, n_labels)."""
    group = np.unique(groups, return_inverse=True)[1]
    sums, counts = (np.zeros((group.max(initial=-1) + 1, values.shape[1])) for _ in range(2))
    np.add.at(sums, group, np.nan_to_num(values))
    np.add.at(counts, group, ~np.isnan(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of independent estimates, such as those of several sites' patients."""
    n = len(estimates)
    parts = tuple((variance / n**2, freedom) for one in estimates for variance, freedom in one.parts)
    if not n or not all(one.parts for one in estimates):
        parts = ()
    return Estimate(
        mean=sum(one.mean for one in estimates) / n if n else math.nan,
        parts=parts,
        n_patients=sum(one.n_patients for one in estimates),
        n_seeds=min((one.n_seeds for one in estimates), default=1),
    )


def interval(
    found: Estimate,
    *,
    level: float = LEVEL,
    bounds: tuple[float, float] = UNBOUNDED,
    min_patients: int = MIN_PATIENTS_OF_DIFFERENCE,
) -> Interval:
    """Student's t interval, on the scale on which a bounded mean is least skewed.

    Args:
        bounds: of the metric. (0, 1): on the logit scale; (0, inf): on the log scale; else as it is. The interval is
            carried there and back by the slope of the scale at the mean (delta method), and so stays within bounds.
        min_patients: with fewer there is no interval.
    """
    if found.n_patients < min_patients or not found.parts:
        kind = f"none: {found.n_patients} patients are too few to hold its level, at least {min_patients} are needed"
        return Interval(found.mean, math.nan, math.nan, kind)
    mean, kind = found.mean, f"t over {found.n_patients} patients"
    kind += f" and {found.n_seeds} seeds" if found.n_seeds > 1 else ""
    reach = float(special.stdtrit(found.degrees_of_freedom, 0.5 + level / 2)) * found.standard_error
    if bounds == (0, 1) and 0 < mean < 1:
        logit, reach = math.log(mean / (1 - mean)), reach / (mean * (1 - mean))
        low, high = (float(1 / (1 + np.exp(-end))) for end in (logit - reach, logit + reach))
    elif bounds == (0, math.inf) and mean > 0:
        low, high = (float(mean * np.exp(end)) for end in (-reach / mean, reach / mean))
    else:
        low, high = mean - reach, mean + reach
    return Interval(mean, low, high, kind)


def p_value(found: Estimate) -> float:
    """Two-sided p of a mean difference of 0; never below 2 / 2**n, the smallest that the signs of n patients give."""
    if not found.parts:
        return math.nan
    smallest = 2.0 ** (1 - found.n_patients)
    if not found.standard_error:
        return 1.0 if found.mean == 0 else smallest
    p = 2 * float(special.stdtr(found.degrees_of_freedom, -abs(found.mean) / found.standard_error))
    return max(p, smallest)


def patients_needed(n_comparisons: int) -> int:
    """The smallest number of patients whose signs can reach p < 0.05 after the correction for the comparisons."""
    return 1 + math.ceil(math.log2(max(1, n_comparisons) / (1 - LEVEL)))


def judge(found: Estimate, n_comparisons: int, *, direction: str = "higher", withheld: str = "") -> Judgement:
    """Judge one difference of ``n_comparisons`` that are reported together.

    Args:
        direction: whether ``higher`` or ``lower`` values of the metric are better.
        withheld: why there must be no verdict, such as a training that failed; empty: there may be one.
    """
    needed = patients_needed(n_comparisons)
    corrected = interval(found, level=1 - (1 - LEVEL) / max(1, n_comparisons), min_patients=needed)
    p = min(1.0, n_comparisons * p_value(found))
    if withheld or math.isnan(found.mean):
        return Judgement(corrected, math.nan, withheld or "not measured", found.n_patients)
    if math.isnan(corrected.low):
        words = f"too few patients to tell: {found.n_patients} of at least {needed}"
        return Judgement(corrected, math.nan, words, found.n_patients)
    verdict = UNCLEAR
    if p < 1 - LEVEL:
        verdict = GAIN if (found.mean > 0) == (direction == "higher") else LOSS
    return Judgement(corrected, p, verdict, found.n_patients)


def interval_of_mean(found: Estimate, metric: str) -> Interval:
    """The interval of a model's mean, within the bounds of the metric."""
    known = METRICS[metric]
    return interval(found, bounds=(known.lower, known.upper), min_patients=MIN_PATIENTS_OF_MEAN)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """One metric of every model on every tested site: (model, site) -> scores, whose rows are the same at one site."""

    scores: Mapping[tuple[str, str], Scores]

    @classmethod
    def of(cls, results: pd.DataFrame, metric: str) -> ScoreTable:
        """Of the rows of a ``results.csv``; what a model was not tested on is undefined."""
        found = {}
        keys = ["fold", "seed", "patient", "case"]
        for site, rows in results.groupby("tested_on", sort=True):
            wide = rows.pivot(index=keys, columns=["model", "label"], values=metric).sort_index()
            fold, seed, patient, _ = (wide.index.get_level_values(name).to_numpy() for name in keys)
            # all models have the same columns, so that their labels stand below each other
            labels = wide.columns.get_level_values("label").unique()
            for model in wide.columns.get_level_values("model").unique():
                values = wide[model].reindex(columns=labels).to_numpy(float)
                found[str(model), str(site)] = Scores(values, patient, fold, seed)
        return cls(found)

    @property
    def models(self) -> set[str]:
        """Those that were tested anywhere."""
        return {model for model, _ in self.scores}

    @property
    def sites(self) -> list[str]:
        """Those that were tested on, by name."""
        return sorted({site for _, site in self.scores})

    def mean(self, model: str, site: str, metric: str) -> Interval:
        """A model's mean on a site's images with its interval."""
        return interval_of_mean(estimate(self.scores[model, site]), metric)

    def difference(self, models_a: Mapping[str, str], models_b: Mapping[str, str]) -> Estimate:
        """A minus B on the same images, labels and seeds; the mean over the sites that both have (site -> model)."""
        found = [
            estimate(self.scores[model, site].minus(self.scores[models_b[site], site]))
            for site, model in models_a.items()
            if site in models_b and {(model, site), (models_b[site], site)} <= self.scores.keys()
        ]
        return mean_of(found)

    def mean_difference(self, pairs: Sequence[tuple[str, str]]) -> Estimate:
        """The mean over pairs of models of their difference, each on all sites' images; the mean over these sites."""
        found = []
        for site in self.sites:
            apart = [self.scores[a, site].minus(self.scores[b, site]) for a, b in pairs]
            # the pairs were tested on the same patients: first their mean on each image, then the patients
            found.append(estimate(replace(apart[0], values=nan_mean(np.stack([one.values for one in apart]), axis=0))))
        return mean_of(found)
