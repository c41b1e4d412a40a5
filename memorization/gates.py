"""What a site's figures must be before its synthetic images may leave.

A gate has a figure, a limit and a decision: ``passed``, ``failed`` or ``not measurable``. A leakage gate fails where
its figure lies beyond its limit *and* chance does not explain it: p over relabelled patients is at most its level. The
familywise level is shared by the tests that the site's numbers of patients can carry (``dataset.enough_patients``), so
the leakage gates together refuse a site whose generator copies nothing with a probability of at most that level
(Bonferroni, since all figures come from the same images).

The gates before them judge the filter: how much it dropped, and what it finds of copies planted for it.

The rule of ``gates.enforce=true``: a gate that failed refuses the package. A gate that is not measurable does not
refuse by itself, and nowhere counts as passed; but at least ``min_measured`` leakage gates must have been measured,
which is a gate of its own. ``gates.enforce=false`` writes the package all the same, and every text about it
says so first.

Gates decide on figures of four digits, as they leave the site: whoever has the package can decide again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from common.errors import InputError
from common.resampling import clopper_pearson
from dataset.enough_patients import TESTS, levels_of_tests
from memorization.leakage.evidence import MetricResult
from memorization.leakage.metrics import METRICS, Unmeasured

MORE_PATIENTS = "give the site more patients (docs/leakage.md says how many), or choose another fold"
LESS_COPYING = (
    "train the generator on more patients or for fewer kimg (train.gan.kimg), or drop more (memorization.percentile)"
)
BETTER_FILTER = "use memorization=offline (the fused rule), or give more patients for the calibration of the filter"
PLANT_COPIES = "plant copies (gates.n_planted_copies=1)"
DROPPED_SHARE = "dropped share"
PLANTED_RECALL = "planted-copy recall"
EVIDENCE = "leakage gates measured"
MAX_PLANTED_COPIES = 1000  # of each kind and strength: 65,000 images to judge
N_NAMED = 4  # kinds of copies in a reason
WITHIN = "within its limit"
FIGURE_DIGITS = 4
PASSED, FAILED, NOT_MEASURABLE = "passed", "failed", "not measurable"
DECISIONS = (PASSED, FAILED, NOT_MEASURABLE)
PASSED_IN_PART = "no gate failed, not all were measurable"  # verdicts, besides PASSED
REFUSED, NOT_ENFORCED = "refused", "failed, not enforced"


@dataclass(frozen=True)
class GateKind:
    """What is always so of a gate: the unit of its figure, how the figure is compared with its limit, its setting."""

    name: str
    unit: str
    comparison: str  # "<=" or ">=": figure, comparison, limit
    limit: str  # a field of ``GatesConfig``


def _of_figure(name: str, limit: str) -> GateKind:
    """A gate on a figure of leakage has the unit and the direction of its figure."""
    metric = next(metric for metric in METRICS if metric.name == name)
    return GateKind(name, metric.unit, "<=" if metric.direction == "lower" else ">=", limit)


LEAKAGE_GATES = (
    _of_figure("closest-record share", "max_closest_record_share"),
    _of_figure("AuthPct over held-out", "min_auth_pct_over_heldout"),
    _of_figure("C_T", "min_c_t"),
    _of_figure("Fréchet gap", "max_frechet_gap"),
    _of_figure("FLD gap", "min_fld_gap"),
    _of_figure("membership AUC", "max_membership_auc"),
)
N_LEAKAGE_GATES = len(LEAKAGE_GATES)
GATES = (  # what a package may name, in this order (sharing/schema.py)
    GateKind(DROPPED_SHARE, "share of sampled images", "<=", "max_dropped_share"),
    GateKind(PLANTED_RECALL, "share of copies, mean over kinds", ">=", "min_planted_recall"),
    *LEAKAGE_GATES,
    GateKind(EVIDENCE, "gates", ">=", "min_measured"),
)
KINDS = {kind.name: kind for kind in GATES}
TEST_OF = {test.name: test for test in TESTS}


@dataclass(frozen=True)
class GatesConfig:
    """The limits (``config/gates/*.yaml``). Figures and their units: docs/leakage.md."""

    enforce: bool = True  # false: the package is written all the same, and says which gates failed or were not measured
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
    """One decision. ``value`` is None where it was not measured, ``p`` and ``level`` where there is no test."""

    name: str
    unit: str
    value: float | None
    comparison: str  # "<=" or ">="
    limit: float
    decision: str  # one of ``DECISIONS``
    reason: str
    what_would_help: str = ""
    p: float | None = None
    level: float | None = None  # of p

    @property
    def failed(self) -> bool:
        """Whether it refuses, where gates are enforced."""
        return self.decision == FAILED

    @property
    def is_measured(self) -> bool:
        """Whether it had anything to decide on."""
        return self.decision != NOT_MEASURABLE


def judge(figures: AuditedFigures, config: GatesConfig) -> tuple[Gate, ...]:
    """Every gate, and last whether enough leakage gates were measured."""
    levels = levels_of_tests(figures.n_train_patients, figures.n_heldout_patients, config.familywise_level)
    leakage = tuple(_leakage_gate(kind, figures, config, levels) for kind in LEAKAGE_GATES)
    return (
        dropped_share(figures, config),
        planted_recall(figures, config),
        *leakage,
        _evidence_gate(leakage, config),
    )


def verdict_of(gates: Sequence[Gate], is_enforced: bool) -> str:
    """One word for the site: only where every gate was measured and passed is it ``PASSED``."""
    if any(gate.failed for gate in gates):
        return REFUSED if is_enforced else NOT_ENFORCED
    return PASSED if all(gate.is_measured for gate in gates) else PASSED_IN_PART


def rounded(value: float | None) -> float | None:
    """To the digits on which gates decide, and which leave a site."""
    return None if value is None else float(f"{value:.{FIGURE_DIGITS}g}")


def is_beyond(kind: GateKind, value: float, limit: float) -> bool:
    """Whether a figure does not keep its limit."""
    return value > limit if kind.comparison == "<=" else value < limit


def decision_of_test(kind: GateKind, value: float, limit: float, p: float, level: float) -> str:
    """Of a leakage gate that was measured: failed where it is beyond its limit and chance does not explain it."""
    return FAILED if is_beyond(kind, value, limit) and p <= level else PASSED


def decision_of_dropped(share: float, limit: float, n_kept: int) -> str:
    """Of the share dropped; where nothing was kept, no limit lets it pass."""
    return FAILED if share > limit or not n_kept else PASSED


def decision_of_recall(mean_recall: float, n: int, found: int, limit: float) -> str:
    """Of planted copies: failed where the mean and the upper end of the interval of the share found are below."""
    return FAILED if mean_recall < limit and clopper_pearson(found, n)[1] < limit else PASSED


def dropped_share(figures: AuditedFigures, config: GatesConfig) -> Gate:
    """Of the sampled images; the filter cannot be trusted to find every copy of a generator that mostly copies.

    Where it dropped all, no limit lets them pass.
    """
    share = rounded(figures.n_dropped / figures.n_sampled) or 0.0
    decision = decision_of_dropped(share, config.max_dropped_share, figures.n_sampled - figures.n_dropped)
    reason = f"{figures.n_dropped} of {figures.n_sampled} synthetic images were too close to real ones"
    return _gate(KINDS[DROPPED_SHARE], share, config, decision, reason, LESS_COPYING)


def planted_recall(figures: AuditedFigures, config: GatesConfig) -> Gate:
    """Copies of the site's own images, altered in known ways, pass the filter in use.

    It fails where the mean recall over kinds is below its limit and so is the upper end of the 95 % Clopper-Pearson
    interval of the share found of all copies. A filter that finds at least the limit's share of such copies is refused
    with a probability of at most 2.5 %, also where kinds are found unequally often: the number found then spreads less
    than a binomial (Hoeffding 1956). At one copy of each of 65 strengths and a limit of 0.9 it refuses at 52 found or
    fewer; a filter between 0.8 and 0.9 is told from a better one by more copies.
    """
    planted, kind = figures.planted, KINDS[PLANTED_RECALL]
    if planted is None:
        reason = "no copies were planted (gates.n_planted_copies=0)"
        return _gate(kind, None, config, NOT_MEASURABLE, reason, PLANT_COPIES)
    recall = rounded(planted.mean_recall) or 0.0
    decision = decision_of_recall(recall, planted.n, planted.found, config.min_planted_recall)
    low, high = planted.interval
    reason = f"{planted.found} of {planted.n} planted copies found ({low:.2f} to {high:.2f})"
    if planted.missed:
        reason += f"; missed most: {'; '.join(planted.missed[:N_NAMED])}"
    return _gate(kind, recall, config, decision, reason, BETTER_FILTER)


def _leakage_gate(kind: GateKind, figures: AuditedFigures, config: GatesConfig, levels: Mapping[str, float]) -> Gate:
    """Of a figure of leakage; ``levels`` names the tests for which the site has enough patients."""
    figure = _testable(kind, figures, levels)
    if isinstance(figure, Unmeasured):
        level = levels.get(kind.name)
        return _gate(kind, None, config, NOT_MEASURABLE, figure.reason, figure.what_would_help, level=level)
    value, p, level = rounded(figure.value) or 0.0, rounded(figure.p) or 0.0, levels[kind.name]
    limit = float(getattr(config, kind.limit))
    decision = decision_of_test(kind, value, limit, p, level)
    tested = f"p = {p:.2g}, {'at most' if p <= level else 'above'} {level:.2g}"
    reason = f"{value:.4g} is beyond its limit {limit:g}; {tested}" if is_beyond(kind, value, limit) else WITHIN
    return _gate(kind, value, config, decision, reason, LESS_COPYING, p, level)


def _testable(kind: GateKind, figures: AuditedFigures, levels: Mapping[str, float]) -> MetricResult | Unmeasured:
    """The figure, unless no p of it could be small enough: a gate that cannot refuse says nothing."""
    figure = figures.leakage[kind.name]
    if isinstance(figure, Unmeasured):
        return figure
    if math.isnan(figure.p):
        return Unmeasured("too few images in every cell", "generate more images (generate.n_images)")
    if kind.name not in levels:
        p = TEST_OF[kind.name].smallest_p(figures.n_train_patients, figures.n_heldout_patients)
        return Unmeasured(f"with so few patients p is about {p:.2g} at best", MORE_PATIENTS)
    return figure


def _evidence_gate(leakage: Sequence[Gate], config: GatesConfig) -> Gate:
    """Without a single test that could have refused, nothing speaks for the site."""
    n_measured = sum(gate.is_measured for gate in leakage)
    decision = PASSED if n_measured >= config.min_measured else FAILED
    reason, help_ = f"{n_measured} of {N_LEAKAGE_GATES} leakage gates are measurable", ""
    if decision == FAILED:
        missing = next(gate for gate in leakage if not gate.is_measured)
        help_ = f"{missing.what_would_help}; or, knowing that too little was tested, gates.enforce=false"
        reason += f" ({missing.reason})"
    return _gate(KINDS[EVIDENCE], float(n_measured), config, decision, reason, help_)


def _gate(
    kind: GateKind,
    value: float | None,
    config: GatesConfig,
    decision: str,
    reason: str,
    help_: str,
    p: float | None = None,
    level: float | None = None,
) -> Gate:
    """With what would help only where something would."""
    limit, help_ = float(getattr(config, kind.limit)), "" if decision == PASSED else help_
    return Gate(kind.name, kind.unit, value, kind.comparison, limit, decision, reason, help_, p, level)
