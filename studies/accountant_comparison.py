"""How loose the accountant of a private training is, beside an accountant of privacy-loss distributions.

    python -m studies.accountant_comparison
    python -m studies.accountant_comparison --epsilon 8 --delta 1e-4 --rate 0.016 --steps 6000 --images 5

The other accountant is Google's dp-accounting, whose pins conflict with those of autoshare. Install it in an
environment of its own (``pip install dp-accounting numpy``) and call this command there from the repository's folder:
nothing else is needed. Both figures are upper bounds for the same mechanism.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common.command import command
from common.errors import InputError
from gan.accountant import epsilon_after, noise_for

DISCRETISATION = 1e-3


@dataclass(frozen=True)
class Case:
    """Steps, noise in clipping norms, sampling rate, delta, and the units that are added or removed together."""

    n_steps: int
    noise: float
    rate: float
    delta: float
    n_units: int = 1


CASES = (
    Case(1000, 1.1, 0.01, 1e-5),
    Case(25000, 4.0, 0.04, 5e-4),
    Case(6000, 4.43, 0.016, 1e-4),
    Case(6000, 0.983, 0.016, 1e-4),
    Case(375, 0.73, 0.032, 1e-4),
    Case(3000, 0.6, 0.002, 1e-4),
    Case(6000, 4.43, 0.016, 1e-4, 2),
    Case(6000, 4.43, 0.016, 1e-4, 5),
    Case(6000, 0.983, 0.016, 1e-4, 2),
    Case(6000, 0.983, 0.016, 1e-4, 5),
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epsilon", type=float, help="of a training of your own (default: a table of ten)")
    parser.add_argument("--delta", type=float, default=1e-4, help="of that training")
    parser.add_argument("--rate", type=float, default=0.016, help="its sampling rate: batch size / images")
    parser.add_argument("--steps", type=int, default=6000, help="its steps")
    parser.add_argument("--images", type=int, default=1, help="of one patient, where the unit is an image")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Print a line a case, as soon as it is computed."""
    if importlib.util.find_spec("dp_accounting") is None:
        fix = "pip install dp-accounting numpy, in an environment of its own"
        raise InputError("dp-accounting is not installed here", where="studies.accountant_comparison", fix=fix)
    cases: Sequence[Case] = CASES
    if chosen.epsilon is not None:
        noise = noise_for(chosen.epsilon, chosen.delta, chosen.rate, chosen.steps)
        cases = (Case(chosen.steps, noise, chosen.rate, chosen.delta, chosen.images),)
    sys.stdout.write("  steps   noise    rate   delta  units  epsilon here  by loss distributions   looser by\n")
    for case in cases:
        here = epsilon_after(case.n_steps, case.noise, case.rate, case.delta, case.n_units)
        there = epsilon_by_loss_distributions(case)
        sys.stdout.write(
            f"{case.n_steps:7d}{case.noise:8.3f}{case.rate:8.3g}{case.delta:8.2g}{case.n_units:7d}{here:14.3f}"
            f"{there:23.3f}{100 * (here / there - 1):10.1f} %\n"
        )
        sys.stdout.flush()


def epsilon_by_loss_distributions(case: Case) -> float:
    """dp-accounting's epsilon: a mixture of Gaussians a step, whose distances are 0 to ``n_units`` clipping norms."""
    from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism

    counts = range(case.n_units + 1)
    chances = [math.comb(case.n_units, j) * case.rate**j * (1 - case.rate) ** (case.n_units - j) for j in counts]
    step = from_mixture_gaussian_mechanism(
        case.noise, list(counts), chances, value_discretization_interval=DISCRETISATION
    )
    return float(step.self_compose(case.n_steps).get_epsilon_for_delta(case.delta))


if __name__ == "__main__":
    sys.exit(main())
