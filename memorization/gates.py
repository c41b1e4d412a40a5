"""What a site's figures must be before its synthetic images may leave.

A leakage gate refuses where its figure lies beyond its limit *and* chance does not explain it: p over relabelled
patients is at most ``familywise_level`` over the number of leakage gates (Bonferroni, since all figures come from the
same images). So the leakage gates together refuse a site whose generator copies nothing with a probability of at most
``familywise_level``.

The gates before them judge the filter: how much it dropped, and what it finds of copies planted for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from common.errors import InputError
from common.resampling import clopper_pearson
from memorization.leakage.evidence import MetricResult
from memorization.leakage.metrics import Unmeasured

MORE_PATIENTS = "give the site more patients"
LESS_COPYING = (
    "train the generator on more patients or for fewer kimg (train.gan.kimg), or drop more (memorization.percentile)"
)
BETTER_FILTER = "use memorization=offline (the fused rule), or give more patients for the calibration of the filter"
DROPPED_SHARE = "dropped share"
PLANTED_RECALL = "planted-copy recall"
EVIDENCE = "leakage tests measured"
MAX_PLANTED_COPIES = 1000  # of each kind and strength: 65,000 images to judge
N_NAMED = 4  # kinds of copies in a reason


@dataclass(frozen=True)
class GatesConfig:
    """The limits (``config/gates/*.yaml``). Figures and their units: docs/leakage.md."""

    enforce: bool = True  # false: the package is written all the same, and says which gates failed
    familywise_level: float = 0.05  # probability that the leakage gates together refuse where nothing is copied
    min_measured: int = 1  # leakage gates that must be measurable; a site with fewer has no evidence
    max_dropped_share: float = 0.5  # of the sampled images: a generator of which more are copies is not trusted
    n_planted_copies: int = 1  # of each kind and strength, for the filter in use to find; 0: none are planted
    min_planted_recall: float = 0.9  # of the planted copies, the mean over kinds
    max_closest_record_share: float = 0.5
    min_auth_pct_over_heldout: float = 0.0  # AuthPct minus that of the held-out images
    min_c_t: float = -3.0
    max_frechet_gap: float = 0.0
    min_fld_gap: float = 0.0
    max_membership_auc: float = 0.02  # over the control

    def __post_init__(self) -> None:
        allowed = {
            "familywise_level": (0 < self.familywise_level < 1, "a number between 0 and 1"),
            "min_measured": (0 <= self.min_measured <= N_LEAKAGE_GATES, f"0 to {N_LEAKAGE_GATES}"),
            "max_dropped_share": (0 <= self.max_dropped_share <= 1, "0 to 1"),
            "n_planted_copies": (0 <= self.n_planted_copies <= MAX_PLANTED_COPIES, f"0 to {MAX_PLANTED_COPIES}"),
            "min_planted_recall": (0 <= self.min_planted_recall <= 1, "0 to 1"),
            "max_closest_record_share": (0 <= self.max_closest_record_share <= 1, "0 to 1"),
            "min_auth_pct_over_heldout": (-100 <= self.min_auth_pct_over_heldout <= 100, "-100 to 100"),
            "max_membership_auc": (-1 <= self.max_membership_auc <= 1, "-1 to 1"),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            holds, wanted = allowed.get(field.name, (True, "a finite number"))
            if not (math.isfinite(value) and holds):
                raise InputError(f"{value!r} is not allowed", where=f"gates.{field.name}", fix=f"use {wanted}")


@dataclass(frozen=True)
class PlantedRecall:
    """What the filter in use found of the copies planted for it, and what it drops of real images."""

    n: int
    found: int
    mean_recall: float  # over kinds
    missed: tuple[str, ...]  # kinds of which a copy was missed, the most missed first
    honest_dropped_share: float | None  # of real images of patients whom it has not seen; None: there are none

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, of the share found of all copies."""
        return clopper_pearson(self.found, self.n)


@dataclass(frozen=True)
class AuditedFigures:
    """What the gates look at."""

    n_sampled: int
    n_dropped: int
    n_train_patients: int
    n_heldout_patients: int
    leakage: Mapping[str, MetricResult | Unmeasured]
    planted: PlantedRecall | None = None  # None: no copies were planted


@dataclass(frozen=True)
class Gate:
    """One decision. ``value`` is None where it could not be measured, ``p`` and ``level`` where there is no test."""

    name: str
    value: float | None
    safer: str  # "lower" or "higher" values
    limit: float
    passed: bool
    reason: str
    what_would_help: str = ""
    p: float | None = None
    level: float | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it had anything to decide on."""
        return self.value is not None


def judge(figures: AuditedFigures, config: GatesConfig) -> tuple[Gate, ...]:
    """Every gate, and last whether there was evidence enough to judge by."""
    of_leakage = (_leakage_gate(gate, figures, config) for gate in LEAKAGE_GATES)
    gates = (dropped_share(figures, config), planted_recall(figures, config), *of_leakage)
    return (*gates, _evidence_gate(gates, config))


def dropped_share(figures: AuditedFigures, config: GatesConfig) -> Gate:
    """Of the sampled images; the filter cannot be trusted to find every copy of a generator that mostly copies.

    Where it dropped all, no limit lets them pass.
    """
    share, limit = figures.n_dropped / figures.n_sampled, config.max_dropped_share
    reason = f"{figures.n_dropped} of {figures.n_sampled} synthetic images were too close to real ones"
    passed = share <= limit and figures.n_dropped < figures.n_sampled
    return Gate(DROPPED_SHARE, share, "lower", limit, passed, reason, "" if passed else LESS_COPYING)


def planted_recall(figures: AuditedFigures, config: GatesConfig) -> Gate:
    """Copies of the site's own images, altered in known ways, pass the filter in use.

    It refuses where the mean recall over kinds is below its limit and so is the upper end of the 95 % Clopper-Pearson
    interval of the share found of all copies. A filter that finds at least the limit's share of such copies is refused
    with a probability of at most 2.5 %, also where kinds are found unequally often: the number found then spreads less
    than a binomial (Hoeffding 1956). At one copy of each of 65 strengths and a limit of 0.9 it refuses at 52 found or
    fewer; a filter between 0.8 and 0.9 is told from a better one by more copies.
    """
    planted, limit = figures.planted, config.min_planted_recall
    if planted is None:
        reason = "not measured: no copies were planted (gates.n_planted_copies=0)"
        return Gate(PLANTED_RECALL, None, "higher", limit, True, reason)
    passed = planted.mean_recall >= limit or planted.interval[1] >= limit
    low, high = planted.interval
    reason = f"{planted.found} of {planted.n} planted copies found ({low:.2f} to {high:.2f})"
    if planted.missed:
        reason += f"; missed most: {'; '.join(planted.missed[:N_NAMED])}"
    help_ = "" if passed else BETTER_FILTER
    return Gate(PLANTED_RECALL, planted.mean_recall, "higher", limit, passed, reason, help_)


@dataclass(frozen=True)
class LeakageGate:
    """A figure of leakage that is a gate, and the setting with its limit."""

    name: str
    safer: str
    limit: str  # a field of ``GatesConfig``
    over_baseline: bool = False  # the limit is of the value minus the baseline
    halves_heldout: bool = False  # one half of the held-out patients is the attacker's reference


LEAKAGE_GATES = (
    LeakageGate("closest-record share", "lower", "max_closest_record_share"),
    LeakageGate("AuthPct", "higher", "min_auth_pct_over_heldout", over_baseline=True),
    LeakageGate("C_T", "higher", "min_c_t"),
    LeakageGate("Fréchet gap", "lower", "max_frechet_gap"),
    LeakageGate("FLD gap", "higher", "min_fld_gap"),
    LeakageGate("membership AUC", "lower", "max_membership_auc", halves_heldout=True),
)
N_LEAKAGE_GATES = len(LEAKAGE_GATES)
# what a package may name (sharing/schema.py)
GATE_NAMES = (DROPPED_SHARE, PLANTED_RECALL, *(gate.name for gate in LEAKAGE_GATES), EVIDENCE)


def _leakage_gate(gate: LeakageGate, figures: AuditedFigures, config: GatesConfig) -> Gate:
    """Refuse a figure that is beyond its limit where chance does not explain it."""
    level, limit = config.familywise_level / N_LEAKAGE_GATES, float(getattr(config, gate.limit))
    n_others = figures.n_heldout_patients
    n_others -= n_others // 2 if gate.halves_heldout else 0
    n_labellings = math.comb(figures.n_train_patients + n_others, n_others)
    figure = _testable(figures.leakage[gate.name], level, n_labellings)
    if isinstance(figure, Unmeasured):
        reason = f"not measurable: {figure.reason}"
        return Gate(gate.name, None, gate.safer, limit, True, reason, figure.what_would_help, None, level)
    value = figure.value - (figure.baseline if gate.over_baseline else 0.0)
    is_beyond, is_chance = value > limit if gate.safer == "lower" else value < limit, figure.p > level
    passed = not is_beyond or is_chance
    tested = f"p = {figure.p:.2g}, {'above' if is_chance else 'at most'} {level:.2g}"
    reason = f"{value:.3g} is beyond its limit {limit:g}; {tested}" if is_beyond else "within its limit"
    help_ = "" if passed else LESS_COPYING
    return Gate(gate.name, value, gate.safer, limit, passed, reason, help_, figure.p, level)


def _testable(figure: MetricResult | Unmeasured, level: float, n_labellings: int) -> MetricResult | Unmeasured:
    """The figure, unless no p of it could ever be small enough: a gate that cannot refuse says nothing."""
    if isinstance(figure, Unmeasured):
        return figure
    if math.isnan(figure.p):
        return Unmeasured("too few images in every cell", "generate more images (generate.n_images)")
    if n_labellings * level < 1:
        return Unmeasured(f"with so few patients no p is below {1 / n_labellings:.2g}", MORE_PATIENTS)
    return figure


def _evidence_gate(gates: tuple[Gate, ...], config: GatesConfig) -> Gate:
    """Without a single test that could have refused, nothing speaks for the site."""
    of_leakage = [gate for gate in gates if gate.level is not None]
    n_measured = sum(gate.is_measured for gate in of_leakage)
    passed = n_measured >= config.min_measured
    reason = f"{n_measured} of {N_LEAKAGE_GATES} leakage figures can be tested"
    help_ = ""
    if not passed:
        missing = next(gate for gate in of_leakage if not gate.is_measured)
        help_ = f"{missing.what_would_help}; or, knowing that nothing was tested, gates.enforce=false"
        reason += f" ({missing.reason.removeprefix('not measurable: ')})"
    return Gate(EVIDENCE, float(n_measured), "higher", float(config.min_measured), passed, reason, help_)
