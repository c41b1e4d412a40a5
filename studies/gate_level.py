"""How often the leakage gates refuse a small site that copies nothing, and one whose images are all copies.

    python -m studies.gate_level --cells 6,2 12,4 --n-sites 200

Sites are simulated: unit vectors stand for the features of images, each patient has a centre of its own and up to three
images around it. An honest generator draws new patients; a copying one draws its training images with a little noise.
The figures and the gates are those of a run. Beside the rule in use stands the rule before it: six tests, each at a
sixth of the level, whatever the number of patients (with --used-only, of the gates in use alone).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.command import command
from common.errors import InputError
from common.markdown import markdown_table
from common.progress import shown_progress
from common.resampling import clopper_pearson
from common.seeds import derive_seed
from dataset.enough_patients import levels_of_tests
from memorization.gates import FAILED, LEAKAGE_GATES, TEST_OF, AuditedFigures, GatesConfig, is_beyond, judge
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.metrics import METRICS, Unmeasured

N_FEATURES, N_GENERATED = 16, 60
IMAGE_SPREAD, COPY_NOISE = 0.5, 0.02  # of an image around its patient, whose own spread is 1; of a copy
MAX_IMAGES = 3  # of a patient
NAMES = tuple(kind.name for kind in LEAKAGE_GATES)
COLUMNS = (
    *("trained on", "held out", "sites", "copies", "gates measured", "refused [95 %]", "six tests [95 %]"),
    *(f"{name}, p <= 0.05" for name in NAMES),
)


@dataclass(frozen=True)
class Refusals:
    """What became of the sites of one cell."""

    n_train: int
    n_heldout: int
    copies: bool
    n_sites: int
    n_measured: int  # gates
    refused: int
    refused_by_six: int
    small_p: tuple[int, ...]  # sites with p <= 0.05, of each gate's figure


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    cells = ["6,2", "7,3", "9,3", "12,4", "18,6"]
    parser.add_argument("--cells", nargs="+", default=cells, help="patients trained on and held out, as 12,4")
    parser.add_argument("--n-sites", type=int, default=200, help="sites of each cell and generator")
    parser.add_argument("--used-only", action="store_true", help="measure only the gates in use: faster, more sites")
    parser.add_argument("--seed", type=int, default=0, help="of the sites")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Simulate, judge, print a row for each cell and generator."""
    cells = [_numbers(cell) for cell in chosen.cells]
    rows = []
    with shown_progress() as progress:
        for n_train, n_heldout in cells:
            for copies in (False, True):
                rows.append(_row(simulate(n_train, n_heldout, copies, chosen.n_sites, chosen.seed, chosen.used_only)))
                progress(len(rows), 2 * len(cells), "cells")
    sys.stdout.write("\n".join(markdown_table(COLUMNS, rows)) + "\n")


def _numbers(cell: str) -> tuple[int, int]:
    numbers = cell.split(",")
    if len(numbers) != 2 or not all(number.isdigit() and int(number) > 1 for number in numbers):
        raise InputError(
            f"{cell!r} is no pair of numbers", where="--cells", fix="write two or more patients each: 12,4"
        )
    return int(numbers[0]), int(numbers[1])


def simulate(n_train: int, n_heldout: int, copies: bool, n_sites: int, seed: int, used_only: bool) -> Refusals:
    """Draw ``n_sites`` sites, measure every figure of leakage, judge each by both rules."""
    names = [*levels_of_tests(n_train, n_heldout, GatesConfig().familywise_level)] if used_only else NAMES
    refused = refused_by_six = n_measured = 0
    small_p = np.zeros(len(NAMES), int)
    for number in range(n_sites):
        evidence = draw_site(n_train, n_heldout, copies, derive_seed(seed, "gate level", n_train, n_heldout, number))
        figures = measured_of(evidence, names)
        gates = judge(AuditedFigures(100, 0, n_train, n_heldout, figures), GatesConfig())
        leakage = [gate for gate in gates if gate.name in NAMES]
        n_measured = sum(gate.is_measured for gate in leakage)
        refused += any(gate.decision == FAILED for gate in leakage)
        refused_by_six += refuses_by_six(figures, n_train, n_heldout)
        small_p += [isinstance(figure := figures[name], MetricResult) and figure.p <= 0.05 for name in NAMES]
    found = tuple(int(count) for count in small_p)
    return Refusals(n_train, n_heldout, copies, n_sites, n_measured, refused, refused_by_six, found)


def draw_site(n_train: int, n_heldout: int, copies: bool, seed: int) -> Evidence:
    """One site and what its generator makes."""
    rng = np.random.default_rng(seed)
    train, heldout, others = (_patients(n, rng) for n in (n_train, n_heldout, N_GENERATED))
    generated = others[0][:N_GENERATED]
    if copies:
        generated = train[0][rng.integers(0, len(train[0]), N_GENERATED)]
        generated = _unit(generated + COPY_NOISE * rng.normal(size=generated.shape))
    names = [[f"{side}{patient}" for patient in of[1]] for side, of in (("t", train), ("h", heldout))]
    return Evidence(train[0], names[0], heldout[0], names[1], generated, seed=seed)


def measured_of(evidence: Evidence, names: Sequence[str]) -> dict[str, MetricResult | Unmeasured]:
    """The figures of these gates; the others as not measured."""
    measured: dict[str, MetricResult | Unmeasured] = {name: Unmeasured("not asked for", "") for name in NAMES}
    for metric in METRICS:
        if metric.name in names:
            try:
                measured[metric.name] = metric.measure(evidence)
            except InputError as error:
                measured[metric.name] = Unmeasured(error.problem, error.fix)
    return measured


def refuses_by_six(figures: dict[str, MetricResult | Unmeasured], n_train: int, n_heldout: int) -> bool:
    """The rule before: every test at a sixth of the level, where 1 over the labellings is not above it."""
    config, found = GatesConfig(), []
    for kind in LEAKAGE_GATES:
        figure, level = figures[kind.name], config.familywise_level / len(LEAKAGE_GATES)
        if isinstance(figure, MetricResult) and TEST_OF[kind.name].n_labellings(n_train, n_heldout) * level >= 1:
            limit = float(getattr(config, kind.limit))
            found.append(is_beyond(kind, figure.value, limit) and not math.isnan(figure.p) and figure.p <= level)
    return any(found)


def _patients(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images (m, features) of ``n`` patients, and the patient of each (m,)."""
    owner = np.repeat(np.arange(n), rng.integers(1, MAX_IMAGES + 1, n))
    centres = rng.normal(size=(n, N_FEATURES))
    return _unit(centres[owner] + IMAGE_SPREAD * rng.normal(size=(len(owner), N_FEATURES))), owner


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _row(one: Refusals) -> Sequence[str]:
    shares = (f"{count / one.n_sites:.3f}" for count in one.small_p)
    return (
        *(str(one.n_train), str(one.n_heldout), str(one.n_sites), "all" if one.copies else "none"),
        *(f"{one.n_measured} of {len(NAMES)}", _rate(one.refused, one.n_sites)),
        *(_rate(one.refused_by_six, one.n_sites), *shares),
    )


def _rate(count: int, n: int) -> str:
    low, high = clopper_pearson(count, n)
    return f"{count / n:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
