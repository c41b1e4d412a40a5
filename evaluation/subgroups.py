"""Results by subgroup of the patients: who is served worst."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evaluation.approaches import LOCAL, OURS
from evaluation.statistics import Interval, Scores, ScoreTable, estimate, interval_of_mean

if TYPE_CHECKING:
    import pandas as pd

MIN_PATIENTS = 5  # nothing is said of fewer


@dataclass(frozen=True)
class Subgroup:
    """One value of one column at one site: Dice of the site's network; NaN where there are too few patients."""

    site: str
    model: str
    column: str
    value: str
    n_patients: int
    dice: Interval
    is_worst: bool = False  # of the column's values with enough patients, where there are two or more


def by_subgroup(results: pd.DataFrame, groups: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[Subgroup]:
    """Every subgroup of every site, by column and value.

    Args:
        groups: site -> case -> column -> value. A site with a network of its own is tested with that one, with sharing
            where there is one; a site that is only tested with every network that shared.
    """
    table, found = ScoreTable.of(results, "dice"), []
    for site, of_case in sorted(groups.items()):
        cases = _cases_of(results, site)
        own = next((name for name in (f"{OURS}-{site}", f"{LOCAL}-{site}") if name in table.models), None)
        ours = sorted(model for model in table.models if model.startswith(f"{OURS}-"))
        for model in [own] if own else ours:
            for column in sorted({column for values in of_case.values() for column in values}):
                values = np.array([of_case[case][column] for case in cases])
                found += _of_column(table.scores[model, site], values, Subgroup(site, model, column, "", 0, _NONE))
    return found


_NONE = Interval(math.nan, math.nan, math.nan, f"none: fewer than {MIN_PATIENTS} patients")


def _cases_of(results: pd.DataFrame, site: str) -> list[str]:
    """The case of each row of a site's scores."""
    keys = ["fold", "seed", "patient", "case"]
    rows = results[results["tested_on"] == site][keys].drop_duplicates().sort_values(keys)
    return [str(case) for case in rows["case"]]


def _of_column(scores: Scores, values: np.ndarray, named: Subgroup) -> list[Subgroup]:
    found = []
    for value in np.unique(values):
        chosen = values == value
        of_value = Scores(scores.values[chosen], scores.patients[chosen], scores.folds[chosen], scores.seeds[chosen])
        n_patients = len(np.unique(of_value.patients))
        dice = interval_of_mean(estimate(of_value), "dice") if n_patients >= MIN_PATIENTS else _NONE
        found.append(replace(named, value=str(value), n_patients=n_patients, dice=dice))
    known = [one for one in found if not math.isnan(one.dice.mean)]
    worst = min(known, key=lambda one: one.dice.mean) if len(known) > 1 else None
    return [replace(one, is_worst=one is worst) for one in found]
