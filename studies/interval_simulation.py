"""Whether intervals and verdicts keep their level: simulated experiments, judged by the code that judges real ones.

    python -m studies.interval_simulation
    python -m studies.interval_simulation --results runs/cxr_hannover --out simulation.json

Three tables; behind each share its Clopper-Pearson interval:

- **Coverage** of the intervals of a mean and of a paired difference, for 4 to 30 patients with 1 to 8 images each. The
  images of a patient are correlated (0.8). Dice is normal, logit-normal, or logit-normal with many bad cases; with
  ``--results``, patients are drawn from the scores of a finished run. With fewer patients than a report shows an
  interval for, the cell stands in brackets. Beside it: the same interval with images as units, as a warning.
- **False verdicts**: reports of 2 to 5 sites in which nothing differs; the share of reports with any verdict in any
  row. Beside it the power: sharing gives 3 points of Dice at every site.
- **Seeds**: networks whose trainings differ by chance by 2 points. The interval over patients alone is a statement on
  these trained networks; the one over patients and seeds is one on the method.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.command import command
from common.files import write_json
from common.markdown import markdown_table
from common.progress import shown_progress
from common.resampling import clopper_pearson
from common.seeds import derive_seed

if TYPE_CHECKING:
    from evaluation.statistics import Scores, ScoreTable
    from studies.simulated_dice import Distribution, Population

log = logging.getLogger(__name__)

N_PATIENTS = (4, 6, 8, 10, 15, 20, 30)
N_IMAGES = (1, 3, 8)
N_SITES = (2, 3, 5)
N_SEEDS = (1, 2, 3, 5)
PATIENTS_OF_REPORT = (6, 12, 24)  # at each site
IMAGES_OF_REPORT = 3
FAMILIES = ("real", "real-long", "syn-real")  # a network a site
POOLED = ("real-all", "syn-all", "fedavg-all")  # one network for all
GAIN_DICE = 0.03
TRAINING_SPREAD = 0.02  # standard deviation of a network's mean Dice over trainings


@dataclass(frozen=True)
class Share:
    """How often something held in ``n_runs`` simulated runs; ``low`` and ``high``: Clopper-Pearson, 95 %."""

    value: float
    low: float
    high: float
    n_runs: int

    @classmethod
    def of(cls, n_held: int, n_runs: int) -> Share:
        """Of a count."""
        return cls(n_held / n_runs, *clopper_pearson(n_held, n_runs), n_runs)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Cell:
    """One line of a table: what was simulated, and the shares that were counted."""

    table: str
    case: tuple[str, ...]
    shares: dict[str, Share]
    is_shown: bool = True  # whether a report would show such an interval


def simulate_coverage(population: Population, n_patients: int, n_images: int, n_runs: int) -> Iterator[Cell]:
    """How often the intervals of a mean and of a difference hold the true value; one cell each."""
    from evaluation.statistics import (
        MIN_PATIENTS_OF_DIFFERENCE,
        MIN_PATIENTS_OF_MEAN,
        UNBOUNDED,
        estimate,
        interval,
    )

    rng = np.random.default_rng(derive_seed("coverage", population.name, n_patients, n_images))
    dice = population.draw(rng, n_runs, n_patients, n_images)
    kinds = {
        "mean": (dice[0], population.true_mean(), (0, 1), MIN_PATIENTS_OF_MEAN),
        "difference": (dice[0] - dice[1], 0.0, UNBOUNDED, MIN_PATIENTS_OF_DIFFERENCE),
    }
    for kind, (values, truth, bounds, needed) in kinds.items():
        held = {"patients as units": 0, "images as units": 0}
        for run in values.reshape(n_runs, -1, 1):
            owners = np.repeat(np.arange(n_patients), n_images), np.arange(len(run))
            for unit, owner in zip(held, owners, strict=True):
                found = interval(estimate(_scores(run, owner)), bounds=bounds, min_patients=2)
                held[unit] += found.low <= truth <= found.high
        shares = {unit: Share.of(count, n_runs) for unit, count in held.items()}
        case = (kind, population.name, str(n_patients), str(n_images))
        yield Cell("coverage", case, shares, is_shown=n_patients >= needed)


def _scores(values: np.ndarray, patients: np.ndarray, seeds: np.ndarray | None = None) -> Scores:
    from evaluation.statistics import Scores

    zeros = np.zeros(len(values), int)
    return Scores(values, patients, folds=zeros, seeds=zeros if seeds is None else seeds)


def simulate_reports(distribution: Distribution, n_sites: int, n_patients: int, n_runs: int) -> Cell:
    """How often a whole report holds a verdict: where nothing differs, and where sharing gives ``GAIN_DICE``."""
    from evaluation.statistics import GAIN, LOSS
    from evaluation.verdicts import better_control, judge_all

    rng = np.random.default_rng(derive_seed("reports", distribution.name, n_sites, n_patients))
    false, found = 0, 0
    for _ in range(n_runs):
        table = _simulated_table(distribution, n_sites, n_patients, rng)
        controls = {site: better_control(table.models, site, None) for site in table.sites}
        false += any(one.verdict in (GAIN, LOSS) for one in judge_all(table, controls).values())
        judged = judge_all(_with_gain(table), controls)
        found += sum(judged["own images", site].verdict == GAIN for site in table.sites)
    shares = {
        "any false verdict": Share.of(false, n_runs),
        f"gain of {GAIN_DICE} found, of sites": Share.of(found, n_runs * n_sites),
    }
    return Cell("verdicts", (distribution.name, str(n_sites), str(n_patients)), shares)


def _simulated_table(distribution: Distribution, n_sites: int, n_patients: int, rng: np.random.Generator) -> ScoreTable:
    """An experiment in which all networks are equally good."""
    from evaluation.statistics import ScoreTable

    sites = [chr(ord("A") + index) for index in range(n_sites)]
    models = [*(f"{family}-{site}" for family in FAMILIES for site in sites), *POOLED]
    patients = np.repeat(np.arange(n_patients), IMAGES_OF_REPORT)
    scores: dict[tuple[str, str], Scores] = {}
    for site in sites:
        dice = distribution.draw(rng, 1, n_patients, IMAGES_OF_REPORT, n_networks=len(models))
        scores |= {
            (model, site): _scores(values.reshape(-1, 1), patients) for model, values in zip(models, dice, strict=True)
        }
    return ScoreTable(scores)


def _with_gain(table: ScoreTable) -> ScoreTable:
    """The same experiment with ``GAIN_DICE`` added to every score of a network with sharing."""
    return replace(
        table,
        scores={
            key: replace(found, values=found.values + GAIN_DICE * key[0].startswith("syn-real-"))
            for key, found in table.scores.items()
        },
    )


def simulate_seeds(distribution: Distribution, n_seeds: int, n_patients: int, n_runs: int) -> Cell:
    """How often the interval of a difference holds the difference of the methods, whose trainings vary."""
    from evaluation.statistics import estimate, interval

    rng = np.random.default_rng(derive_seed("seeds", distribution.name, n_seeds, n_patients))
    held = {"patients and seeds": 0, "patients alone": 0}
    for _ in range(n_runs):
        dice = distribution.draw(rng, n_seeds, n_patients, 1)[..., 0]  # (2, seeds, patients)
        trained = dice + TRAINING_SPREAD * rng.standard_normal((2, n_seeds, 1))
        values = (trained[0] - trained[1]).reshape(-1, 1)
        patients, seeds = np.tile(np.arange(n_patients), n_seeds), np.repeat(np.arange(n_seeds), n_patients)
        for kind, of_rows in (("patients and seeds", seeds), ("patients alone", None)):
            found = interval(estimate(_scores(values, patients, of_rows)), min_patients=2)
            held[kind] += found.low <= 0 <= found.high
    shares = {kind: Share.of(count, n_runs) for kind, count in held.items()}
    return Cell("seeds", (distribution.name, str(n_patients), str(n_seeds)), shares)


def simulate(runs: Sequence[Path], n_runs: int) -> Iterator[Cell]:
    """All cells of all tables."""
    from studies.simulated_dice import DISTRIBUTIONS, populations

    for population in populations(runs):
        for n_patients in N_PATIENTS:
            for n_images in N_IMAGES:
                yield from simulate_coverage(population, n_patients, n_images, n_runs)
    for n_seeds in N_SEEDS:
        yield simulate_seeds(DISTRIBUTIONS[1], n_seeds, 12, n_runs)
    for distribution in DISTRIBUTIONS:
        for n_sites in N_SITES:
            for n_patients in PATIENTS_OF_REPORT:
                yield simulate_reports(distribution, n_sites, n_patients, n_runs)


HEADERS = {
    "coverage": ("interval of a", "Dice", "patients", "images each"),
    "seeds": ("Dice", "patients", "seeds"),
    "verdicts": ("Dice", "sites", "patients a site"),
}


def table_lines(cells: Sequence[Cell]) -> list[str]:
    """The tables in markdown; a cell that no report would show stands in brackets."""
    lines = []
    for table, header in HEADERS.items():
        chosen = [cell for cell in cells if cell.table == table]
        if not chosen:
            continue
        shown = [[str(share) if cell.is_shown else f"({share})" for share in cell.shares.values()] for cell in chosen]
        rows = [[*cell.case, *shares] for cell, shares in zip(chosen, shown, strict=True)]
        lines += ["", *markdown_table([*header, *chosen[0].shares], rows)]
    return lines


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs of every cell (default: 2000)")
    parser.add_argument(
        "--results", type=Path, nargs="*", default=[], metavar="RUN", help="finished runs to draw patients from"
    )
    parser.add_argument("--out", type=Path, help="a JSON file that receives every cell")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    cells: list[Cell] = []
    n_cells = 2 * (3 + len(chosen.results)) * len(N_PATIENTS) * len(N_IMAGES)
    n_cells += len(N_SEEDS) + 3 * len(N_SITES) * len(PATIENTS_OF_REPORT)
    with shown_progress() as progress:
        for cell in simulate(chosen.results, chosen.runs):
            cells.append(cell)
            progress(len(cells), max(n_cells, len(cells)), "cells")
    sys.stdout.write("\n".join(table_lines(cells)) + "\n")
    if chosen.out:
        write_json(chosen.out, [asdict(cell) for cell in cells])
        log.info("written: %s", chosen.out)


if __name__ == "__main__":
    sys.exit(main())
