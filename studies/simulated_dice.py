"""Dice of patients who do not exist: drawn from a distribution, or from the scores of a real run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from evaluation.approaches import ALL_SITES, LOCAL, OURS
from evaluation.results import read_results
from evaluation.statistics import nan_mean

CORRELATION = 0.8  # of two images of one patient
POPULATION = 400_000  # patients over whom a true mean is taken


class Population(Protocol):
    """Where simulated patients come from."""

    @property
    def name(self) -> str:
        """As the tables call it."""

    def draw(self, rng: np.random.Generator, n_runs: int, n_patients: int, n_images: int) -> np.ndarray:
        """Dice of two equally good networks; (2, n_runs, n_patients, n_images)."""

    def true_mean(self) -> float:
        """Of the first network, over all patients."""


@dataclass(frozen=True)
class Distribution:
    """Patients are normal on some scale, with ``centre`` and ``spread``; ``to_dice`` leads from there to Dice.

    ``apart``: how far two networks differ by chance at one patient, on that scale.
    """

    name: str
    centre: float
    spread: float
    apart: float
    to_dice: Callable[[np.ndarray], np.ndarray]

    def draw(
        self, rng: np.random.Generator, n_runs: int, n_patients: int, n_images: int, n_networks: int = 2
    ) -> np.ndarray:
        """Images of one patient are correlated, in what the networks share and in what they do not."""
        shape = (n_runs, n_patients, n_images)
        shared = self.centre + self.spread * _correlated(rng, shape)
        return self.to_dice(shared + self.apart * np.stack([_correlated(rng, shape) for _ in range(n_networks)]))

    def true_mean(self) -> float:
        """Over many patients."""
        return float(self.draw(np.random.default_rng(0), 1, POPULATION, 1)[0].mean())


def _correlated(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Standard normal numbers; those of one patient have ``CORRELATION``."""
    of_patient = rng.standard_normal((*shape[:2], 1)) * np.sqrt(CORRELATION)
    return of_patient + rng.standard_normal(shape) * np.sqrt(1 - CORRELATION)


def _expit(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


DISTRIBUTIONS = (
    Distribution("normal", centre=0.85, spread=0.05, apart=0.02, to_dice=lambda x: x),
    Distribution("logit-normal", centre=2.2, spread=0.8, apart=0.3, to_dice=_expit),
    Distribution("logit-normal, many bad cases", centre=2.2, spread=1.5, apart=0.8, to_dice=_expit),
)


@dataclass(frozen=True, eq=False)
class RealScores:
    """Patients of a real run, each with their images' scores of two networks.

    The second network's scores are moved so that both have the same mean: nothing differs.
    """

    name: str
    patients: tuple[np.ndarray, ...]  # each (2, n_images)

    def draw(self, rng: np.random.Generator, n_runs: int, n_patients: int, n_images: int) -> np.ndarray:
        """Patients are drawn with replacement, then images of each."""
        of_patient = rng.integers(len(self.patients), size=(n_runs, n_patients))
        lengths = np.array([patient.shape[1] for patient in self.patients])
        longest = np.stack([np.pad(one, ((0, 0), (0, lengths.max() - one.shape[1]))) for one in self.patients])
        of_image = (rng.random((n_runs, n_patients, n_images)) * lengths[of_patient][..., None]).astype(int)
        return np.moveaxis(longest[of_patient[..., None], :, of_image], -1, 0)

    def true_mean(self) -> float:
        """Over the patients of the run."""
        return float(np.mean([patient[0].mean() for patient in self.patients]))


def real_scores(run: Path) -> list[RealScores]:
    """Of every site of a finished run: its network on own images, and the one with sharing.

    Raises:
        InputError: the run has no results.
    """
    import pandas as pd

    tables = [read_results(path) for path in sorted(run.glob("fold_*/results.csv"))] or [
        read_results(run / "fold_0" / "results.csv")
    ]
    results = pd.concat(tables)
    found = []
    for site in sorted(set(results["tested_on"]) - {ALL_SITES}):
        of_site = results[(results["tested_on"] == site) & (results["seed"] == 0)]
        keys = ["fold", "patient", "case", "label"]
        wide = of_site.pivot(index=keys, columns="model", values="dice")
        models = [f"{LOCAL}-{site}", f"{OURS}-{site}"]
        if not set(models) <= set(wide.columns):
            continue
        by_case = wide[models].groupby(level=["patient", "case"]).mean().dropna()
        patients = [rows.to_numpy(float).T for _, rows in by_case.groupby(level="patient")]
        shift = float(nan_mean(np.array([patient[1].mean() - patient[0].mean() for patient in patients])))
        found.append(RealScores(f"{run.name}, site {site}", tuple(one - [[0.0], [shift]] for one in patients)))
    return found


def populations(runs: Sequence[Path]) -> list[Population]:
    """The distributions, then those of real runs."""
    return [*DISTRIBUTIONS, *(scores for run in runs for scores in real_scores(run))]
