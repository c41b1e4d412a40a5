"""Whether a site has enough patients for the tests of its leakage gates: from numbers alone, before any training.

A leakage gate asks whether the patients trained on and the patients held out could be exchanged. It compares its figure
with the figures of other labellings of the same patients. There are ``C = (n_train + n_heldout choose n_heldout)``
labellings, and at worst the true one is the most extreme of them, so that p cannot be much below ``1 / C``: with few
patients a test cannot refuse, whatever the generator has copied.

The probability that all tests together refuse where nothing is copied is at most the familywise level. Few patients
cannot carry six tests that share this level. So the level is shared by as many tests as the numbers of patients can
carry, taken in a fixed order (Bonferroni with fewer tests). The choice looks at no image and no figure, so the
familywise level holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataset.folds import N_FOLDS, patients_of_folds
from dataset.training_splits import HELD_OUT_SPLITS

FAMILYWISE_LEVEL, MIN_MEASURED = 0.05, 1  # defaults of gates.familywise_level and gates.min_measured
MIN_POWER = 0.8  # probability that a test refuses the most extreme labelling; a test with less is not used
MAX_PATIENTS = 100  # where the search for enough patients ends


@dataclass(frozen=True)
class RelabellingTest:
    """The test of one leakage gate; ``n_drawn`` labellings are drawn at random and compared with the true one."""

    name: str
    n_drawn: int
    halves_heldout: bool = False  # one half of the held-out patients is the attacker's reference
    min_heldout: int = 2  # patients

    def n_labellings(self, n_train: int, n_heldout: int) -> int:
        """C, of the patients that this test may exchange; 1 where it cannot be computed at all."""
        if min(n_train, n_heldout) < 2 or n_heldout < self.min_heldout:
            return 1
        n_others = n_heldout - (n_heldout // 2 if self.halves_heldout else 0)
        return math.comb(n_train + n_others, n_others)

    def smallest_p(self, n_train: int, n_heldout: int) -> float:
        """What p comes to on average for the most extreme labelling: (1 + n_drawn / C) / (1 + n_drawn)."""
        return (1 + self.n_drawn / self.n_labellings(n_train, n_heldout)) / (1 + self.n_drawn)

    def power(self, n_train: int, n_heldout: int, level: float) -> float:
        """Probability of p <= ``level`` for the most extreme labelling: draws that repeat it count against it."""
        from scipy.special import bdtr

        most = math.floor(level * (1 + self.n_drawn) + 1e-9) - 1
        return float(bdtr(most, self.n_drawn, 1 / self.n_labellings(n_train, n_heldout))) if most >= 0 else 0.0


TESTS = (  # those that found most copies at small simulated sites first (python -m studies.gate_level)
    RelabellingTest("closest-record share", 1000),
    RelabellingTest("FLD gap", 199),
    RelabellingTest("AuthPct over held-out", 999),
    RelabellingTest("Fréchet gap", 199),
    RelabellingTest("C_T", 999),
    RelabellingTest("membership AUC", 1000, halves_heldout=True, min_heldout=4),
)


def levels_of_tests(n_train: int, n_heldout: int, familywise_level: float) -> dict[str, float]:
    """The level of each test that these numbers of patients can carry, by name; together the familywise level."""
    for n_used in range(len(TESTS), 0, -1):
        level = familywise_level / n_used
        able = [test.name for test in TESTS if test.power(n_train, n_heldout, level) >= MIN_POWER]
        if len(able) >= n_used:
            return dict.fromkeys(able[:n_used], level)
    return {}


def enough_patients(familywise_level: float = FAMILYWISE_LEVEL, n_wanted: int = MIN_MEASURED) -> int | None:
    """The smallest number of patients from which on every fold of a site can carry ``n_wanted`` tests."""
    enough = None
    for n_patients in range(MAX_PATIENTS, 4, -1):
        folds = patients_of_folds(n_patients)
        if any(len(levels_of_tests(fold.train, fold.val, familywise_level)) < n_wanted for fold in folds):
            break
        enough = n_patients
    return enough


@dataclass(frozen=True)
class Prospect:
    """What the leakage gates of a site can decide, known before anything is trained."""

    site: str
    n_patients: int
    folds: tuple[int, ...]  # those with these numbers of patients
    n_train: int
    n_heldout: int
    familywise_level: float
    n_wanted: int  # gates.min_measured

    @property
    def levels(self) -> dict[str, float]:
        """The level of each test that can be used."""
        return levels_of_tests(self.n_train, self.n_heldout, self.familywise_level)

    @property
    def is_enough(self) -> bool:
        """Whether as many tests as are wanted can be used."""
        return len(self.levels) >= self.n_wanted

    @property
    def where(self) -> str:
        """Site and folds."""
        return f"site {self.site}, {'folds' if len(self.folds) > 1 else 'fold'} {', '.join(map(str, self.folds))}"

    def text(self) -> str:
        """One line: patients, tests with their level, tests that cannot be used with their smallest p."""
        who = f"{self.n_train} patients trained on, {self.n_heldout} held out"
        if not self.n_heldout:
            return f"{self.where}: {who}: no leakage gate can be measured"
        unable: dict[str, list[str]] = {}
        for test in TESTS:
            if test.name not in self.levels:
                unable.setdefault(f"{test.smallest_p(self.n_train, self.n_heldout):.2g}", []).append(test.name)
        said = f"{len(self.levels)} of {len(TESTS)} leakage gates can be measured"
        if self.levels:
            said += f", each at p <= {next(iter(self.levels.values())):.2g}"
        without = "; ".join(f"{', '.join(names)} (p {p} at best)" for p, names in unable.items())
        return f"{self.where}: {who}: {said}" + (f"; too few patients for {without}" if unable else "")


def prospects(
    site: str,
    n_patients: int,
    folds: Sequence[int] = range(N_FOLDS),
    train_on: str = "train",
    familywise_level: float = FAMILYWISE_LEVEL,
    n_wanted: int = MIN_MEASURED,
) -> list[Prospect]:
    """One entry for each pair of numbers (trained on, held out) that the folds of a site have."""
    by_numbers: dict[tuple[int, int], list[int]] = {}
    sizes = patients_of_folds(n_patients)
    for fold in folds:
        n_heldout = sizes[fold].val if HELD_OUT_SPLITS[train_on] else 0
        n_train = sizes[fold].train + sizes[fold].val - n_heldout
        by_numbers.setdefault((n_train, n_heldout), []).append(fold)
    return [
        Prospect(site, n_patients, tuple(of_numbers), *numbers, familywise_level, n_wanted)
        for numbers, of_numbers in by_numbers.items()
    ]


def gate_lines(
    n_patients: Mapping[str, int],
    folds: Sequence[int] = range(N_FOLDS),
    train_on: str = "train",
    familywise_level: float = FAMILYWISE_LEVEL,
    n_wanted: int = MIN_MEASURED,
) -> list[str]:
    """What the leakage gates of every site can decide, and what would change it where that is too little."""
    found = [
        prospect
        for site, n in n_patients.items()
        for prospect in prospects(site, n, folds, train_on, familywise_level, n_wanted)
    ]
    lines = [f"gates       {prospect.text()}" for prospect in found]
    short = [prospect for prospect in found if not prospect.is_enough]
    if not short:
        return lines
    named = "; ".join(prospect.where for prospect in short)
    refused = (
        f"too few can be measured at {named} (gates.min_measured={n_wanted}): whatever the generator does, the package "
        "is refused if gates are enforced"
    )
    return [*lines, f"gates       {refused}. What would change it: {'; '.join(_ways_out(short))}"]


def _ways_out(short: Sequence[Prospect]) -> list[str]:
    level, n_wanted = short[0].familywise_level, short[0].n_wanted
    ways = ["patients held out (generator.train_on=train)"] if any(not one.n_heldout for one in short) else []
    enough = enough_patients(level, n_wanted)
    if enough is not None:
        ways.append(f"{enough} or more patients at the site")
    else:
        ways.append(f"no number of patients up to {MAX_PATIENTS}")
    for site in dict.fromkeys(one.site for one in short if one.n_heldout):
        n_patients = next(one.n_patients for one in short if one.site == site)
        able = [
            one.folds[0]
            for one in prospects(site, n_patients, range(N_FOLDS), "train", level, n_wanted)
            if one.is_enough
        ]
        if able:
            ways.append(f"at site {site} another fold, in which more patients are held out (data.fold={min(able)})")
    return [
        *ways,
        "a gate with more power: a higher gates.familywise_level, at the price of more refusals by chance",
        "more folds do not change it, as each fold's package is judged by that fold's held-out patients alone",
    ]
