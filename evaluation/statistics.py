"""Intervals and paired tests over cases, folds and sites.

A fold's value is the mean over its cases of each label, then the plain mean over labels, NaN left out at both steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from common.resampling import drawn_counts
from common.seeds import derive_seed
from evaluation.segmentation import METRICS

if TYPE_CHECKING:
    import pandas as pd

MIN_PAIRS = 5  # fewer cannot reach p < 0.05 in a one-sided signed-rank test (smallest p: 1 / 2**n)
LEVEL = 0.95
N_RESAMPLES = 2000
DEPENDENCE_NOTE = (
    "The pairs share folds, training images and test images and are not independent, so this p is smaller than it "
    "should be (the paper tests the same way). Rely on the interval over folds instead."
)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; ``kind`` says how it was made. Bounds are NaN where data are too few."""

    mean: float
    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class PairedTest:
    """One-sided test that ``model_a`` is better than ``model_b``; ``p`` is NaN where ``reason`` says why.

    ``mean_difference`` is a - b in the metric's unit, ``effect`` the matched-pairs rank-biserial correlation: 1 where
    a is better in every pair, -1 where b is.
    """

    model_a: str
    model_b: str
    metric: str
    n_pairs: int
    mean_difference: float
    effect: float
    p: float
    reason: str = ""
    note: str = DEPENDENCE_NOTE


def nan_mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean without the NaNs; NaN, without a warning, where nothing is left."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(defined, values, 0.0).sum(axis=axis) / defined.sum(axis=axis))


def t_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's interval of the mean of independent ``values`` (n,); NaN bounds for fewer than two."""
    from scipy import stats

    array = np.asarray(values, float)
    array = array[~np.isnan(array)]
    if len(array) < 2:
        return Interval(float(nan_mean(array)), math.nan, math.nan, f"none ({len(array)} folds)")
    mean, spread = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array))
    reach = spread * float(stats.t.ppf(0.5 + LEVEL / 2, len(array) - 1))
    return Interval(mean, mean - reach, mean + reach, f"t over {len(array)} folds")


def bootstrap_means(
    values: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES, clusters: Sequence[object] | None = None
) -> np.ndarray:
    """Means of resampled ``values`` (n_cases, n_labels): over cases, then over labels; (n_resamples,).

    Whole clusters (the cases of a patient) are drawn where ``clusters`` (n_cases,) names them, else single cases. The
    draw depends on the seed and the number of clusters only, so that two models with one seed get the same cases.
    """
    defined = ~np.isnan(values)
    names = np.asarray([str(name) for name in (range(len(values)) if clusters is None else clusters)])
    cluster = np.unique(names, return_inverse=True)[1]
    sums, counts = (np.zeros((cluster.max() + 1, values.shape[1])) for _ in range(2))
    np.add.at(sums, cluster, np.where(defined, values, 0.0))
    np.add.at(counts, cluster, defined)
    drawn = _drawn_counts(len(sums), seed, n_resamples).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return nan_mean((drawn @ sums) / (drawn @ counts), axis=1)


@lru_cache(maxsize=32)  # eight sites by four metrics: hundreds of models draw the same cases
def _drawn_counts(n: int, seed: int, n_resamples: int) -> np.ndarray:
    """How often each of ``n`` units is drawn in each resample; (n_resamples, n)."""
    drawn = drawn_counts(n, n_resamples, np.random.default_rng(seed)).astype(np.int32)
    drawn.flags.writeable = False
    return drawn


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    seed: int,
    n_resamples: int = N_RESAMPLES,
    clusters: Sequence[object] | None = None,
) -> Interval:
    """Percentile bootstrap of the mean of ``values``, (n_cases,) or (n_cases, n_labels), by case or by cluster."""
    array = np.asarray(values, float)
    array = array.reshape(len(array), -1)
    mean = float(nan_mean(nan_mean(array, axis=0))) if array.size else math.nan
    n_units = len(array) if clusters is None else len({str(name) for name in clusters})
    unit = "cases" if clusters is None else "patients"
    if n_units < 2 or math.isnan(mean):
        return Interval(mean, math.nan, math.nan, f"none ({n_units} {unit})")
    means = bootstrap_means(array, seed, n_resamples, clusters)
    return _percentile_interval(mean, means, f"bootstrap over {n_units} {unit}")


def _percentile_interval(mean: float, means: np.ndarray, kind: str) -> Interval:
    low, high = np.nanpercentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(mean, float(low), float(high), kind)


def split_folds(values: np.ndarray, folds: Iterable[int]) -> dict[int, np.ndarray]:
    """Rows of ``values`` (n, n_labels) by their fold (n,), in ascending order of the folds."""
    of_row = np.asarray(folds)
    return {int(fold): values[of_row == fold] for fold in np.unique(of_row)}


def fold_values(matrices: Mapping[int, np.ndarray]) -> dict[int, float]:
    """The value of each fold: mean over cases, then over labels; folds where nothing is defined are left out."""
    values = {fold: float(nan_mean(nan_mean(matrix, axis=0))) for fold, matrix in matrices.items()}
    return {fold: value for fold, value in values.items() if not math.isnan(value)}


def fold_means(results: pd.DataFrame, metric: str) -> pd.Series:
    """The value of each (model, trained_on, tested_on, fold): mean over cases, then over labels."""
    by_label = results.groupby(["model", "trained_on", "tested_on", "fold", "label"], sort=True)[metric].mean()
    return by_label.groupby(level=[0, 1, 2, 3], sort=True).mean()


def interval_of(results: pd.DataFrame, metric: str, seed: int = 0) -> Interval:
    """The mean of one model on one tested site with its interval; see ``interval_of_folds``."""
    wide = results.pivot(index=["fold", "case"], columns="label", values=metric).sort_index()
    return interval_of_folds(split_folds(wide.to_numpy(float), wide.index.get_level_values("fold")), metric, seed)


def interval_of_folds(matrices: Mapping[int, np.ndarray], metric: str, seed: int = 0) -> Interval:
    """The mean over folds of (n_cases, n_labels) matrices with its interval, within the metric's bounds.

    Over folds (t) where there are at least two, else over the cases of the one fold (bootstrap).
    """
    folds = fold_values(matrices)
    if len(folds) == 1:
        interval = bootstrap_interval(matrices[next(iter(folds))], derive_seed(seed, metric))
    else:
        interval = t_interval(list(folds.values()))
    bounds = METRICS[metric]
    low, high = (float(np.clip(bound, bounds.lower, bounds.upper)) for bound in (interval.low, interval.high))
    return Interval(interval.mean, low, high, interval.kind)


def gain(
    results: pd.DataFrame, model_a: str, model_b: str, tested_on: Sequence[str], metric: str = "dice", seed: int = 0
) -> Interval:
    """``model_a`` minus ``model_b``, averaged over the sites ``tested_on``, over the folds both were tested in.

    The interval is over the folds' differences (t), or, with one fold, over cases, both models drawing the same ones.
    """
    chosen = results[results["tested_on"].isin(list(tested_on))]
    means = fold_means(chosen, metric).groupby(level=["model", "fold", "tested_on"]).mean()
    levels = means.index.get_level_values("model")
    of_a, of_b = (means[levels == model].droplevel("model") for model in (model_a, model_b))
    differences = (of_a - of_b).dropna().groupby(level="fold").mean()
    if len(differences) != 1:
        return t_interval(differences.to_numpy())
    # one fold: each site's cases are drawn with one seed for both models, then the sites' differences are averaged
    chosen = chosen[chosen["fold"] == differences.index[0]]
    by_site = []
    for site, group in chosen.groupby("tested_on", sort=True):
        resampled = {model: np.full(N_RESAMPLES, math.nan) for model in (model_a, model_b)}
        for model in resampled.keys() & set(group["model"]):
            wide = group[group["model"] == model].pivot(index="case", columns="label", values=metric)
            values = wide.reindex(sorted(group["case"].unique())).to_numpy(float)
            resampled[model] = bootstrap_means(values, derive_seed(seed, site))
        by_site.append(resampled[model_a] - resampled[model_b])
    n_cases = int(chosen.groupby("tested_on")["case"].nunique().sum())
    means_of_draws = nan_mean(np.array(by_site), axis=0)
    return _percentile_interval(float(differences.iloc[0]), means_of_draws, f"bootstrap over {n_cases} cases")


def paired_test(results: pd.DataFrame, model_a: str, model_b: str, metric: str = "dice") -> PairedTest:
    """The paper's test: one-sided Wilcoxon signed-rank that ``model_a`` is better than ``model_b``.

    Families (``syn-real``, ``real``) are paired over (fold, training site, tested site), as in the paper; two full
    model names (``syn-real-A``, ``real-all``) over (fold, tested site).
    """
    from scipy import stats

    means = []
    for model in (model_a, model_b):
        if (results["model"] == model).any():
            chosen = results[results["model"] == model].assign(trained_on="")
        else:
            chosen = results[results["model"] == model + "-" + results["trained_on"].astype(str)]
        means.append(fold_means(chosen, metric).droplevel("model"))
    differences = (means[0] - means[1]).dropna().to_numpy(float)
    better = differences if METRICS[metric].direction == "higher" else -differences
    changed = better[better != 0]
    p, reason = math.nan, ""
    if len(better) < MIN_PAIRS:
        reason = f"{len(better)} pairs, at least {MIN_PAIRS} are needed"
    elif not len(changed):
        reason = "the two are equal in every pair"
    else:
        p = float(stats.wilcoxon(better, alternative="greater").pvalue)
    # matched-pairs rank-biserial correlation (Kerby, Compr. Psychol. 3 (2014) 11): pairs without a change have no rank
    ranks = stats.rankdata(np.abs(changed))
    effect = float((ranks * np.sign(changed)).sum() / ranks.sum()) if len(changed) else math.nan
    return PairedTest(
        model_a=model_a,
        model_b=model_b,
        metric=metric,
        n_pairs=len(differences),
        mean_difference=float(nan_mean(differences)),
        effect=effect,
        p=p,
        reason=reason,
    )


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """p values for several tests at once: each times the number of tests that gave one, at most 1; NaN stays NaN."""
    n_tests = sum(not math.isnan(p) for p in p_values)
    return [min(1.0, p * n_tests) if not math.isnan(p) else p for p in p_values]
