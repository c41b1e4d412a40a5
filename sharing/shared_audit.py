"""The site's audit as it leaves the site, and how a receiver decides every gate again from its figure and limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose

from memorization.gates import (
    DECISIONS,
    DROPPED_SHARE,
    EVIDENCE,
    FAILED,
    GATES,
    KINDS,
    LEAKAGE_GATES,
    NOT_MEASURABLE,
    PASSED,
    PLANTED_RECALL,
    decision_of_dropped,
    decision_of_recall,
    decision_of_test,
    rounded,
)
from memorization.leakage.metrics import METRICS, Metric

MAX_FIGURE = 1e9  # of a measure of leakage
MAX_PLANTED = 10**6  # copies; ours are 65,000 at most
NOTHING_KNOWN = "nothing is known of what they look for"
LEAKAGE = frozenset(kind.name for kind in LEAKAGE_GATES)

Fault = tuple[str, object, str]
"""A key, its value, and what the value must be."""


@dataclass(frozen=True)
class SharedFigure:
    """A figure of leakage; all numbers are None where the site could not measure it."""

    name: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class SharedGate:
    """A gate: figure, unit, comparison and limit, as ``0.41 share of images <= 0.5``, and the decision.

    ``value`` is None where it was not measured, ``p`` and its ``level`` where there is no test.
    """

    name: str
    unit: str
    value: float | None
    comparison: str  # "<=" or ">="
    limit: float
    p: float | None
    level: float | None
    decision: str  # "passed", "failed" or "not measurable"

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        tested = "" if self.p is None or self.level is None else f", p {self.p:g}, level {self.level:.2g}"
        return f"{self.name} {self.value:g} {self.unit} (wanted: {self.comparison} {self.limit:g}{tested})"


@dataclass(frozen=True)
class SharedPlanted:
    """What the filter in use found of copies planted for it.

    ``honest_dropped_share`` is of real images that are no copies, in whole per cent: their number is the site's own.
    None: the site had none to judge.
    """

    n: int
    found: int
    mean_recall: float  # over kinds of copies
    honest_dropped_share: float | None


@dataclass(frozen=True)
class SharedAudit:
    """The site's audit without what tells how many images and patients it has."""

    n_audited: int  # kept images that the figures look at
    enforced: bool
    familywise_level: float
    figures: tuple[SharedFigure, ...]
    planted: SharedPlanted | None  # None: no copies were planted
    gates: tuple[SharedGate, ...]


def statements(audit: SharedAudit) -> list[str]:
    """What a reader must know first: whether gates were enforced, which failed, which say nothing; one sentence each.

    The card, ``sharing.verify`` and the log of ``merge`` say these same sentences.
    """
    failed = [str(gate) for gate in audit.gates if gate.decision == FAILED]
    unmeasured = [gate.name for gate in audit.gates if gate.decision == NOT_MEASURABLE]
    said = [] if audit.enforced else ["The site did not enforce its gates (gates.enforce=false)."]
    if failed:
        said.append(f"Gates that failed: {'; '.join(failed)}.")
    if unmeasured:
        said.append(f"Gates that were not measurable: {', '.join(unmeasured)}; {NOTHING_KNOWN}.")
    if not failed:
        every = "Every gate" if not unmeasured else f"Each of the other {len(audit.gates) - len(unmeasured)} gates"
        said.append(f"{every} was measured and passed.")
    return said


def is_all_passed(audit: SharedAudit) -> bool:
    """Whether every gate was measured and passed, enforced or not."""
    return all(gate.decision == PASSED for gate in audit.gates)


def faults_of_audit(audit: SharedAudit, n_sampled: int | None = None, n_dropped: int = 0) -> Iterator[Fault]:
    """Names and numbers that no audit writes, and decisions that contradict their own figures.

    Args:
        n_sampled: of the package's filter, with ``n_dropped``; None for a refusal, which does not hold them.
    """
    # 1. The level, and the names, units and comparisons of this release in their order.
    if not 0 < audit.familywise_level < 1:
        yield "audit.familywise_level", audit.familywise_level, "between 0 and 1"
    wanted_figures = tuple((metric.name, metric.unit) for metric in METRICS)
    wanted_gates = tuple((kind.name, kind.unit, kind.comparison) for kind in GATES)
    for key, given, wanted in (
        ("figures", tuple((one.name, one.unit) for one in audit.figures), wanted_figures),
        ("gates", tuple((one.name, one.unit, one.comparison) for one in audit.gates), wanted_gates),
    ):
        if given != wanted:
            other = next((one for one, right in zip(given, wanted, strict=False) if one != right), len(given))
            yield f"audit.{key}", other, f"the {len(wanted)} names and units of this release, in their order"
            return

    # 2. Bounds of every number.
    faults = [fault for figure, metric in zip(audit.figures, METRICS, strict=True) for fault in _of(figure, metric)]
    faults += [fault for gate in audit.gates for fault in _out_of_bounds(gate)]
    faults += _faults_of_planted(audit.planted)
    if faults:
        yield from faults
        return

    # 3. Every decision again, from the figure and the limit.
    for gate in audit.gates:
        yield from _contradictions(gate, audit, n_sampled, n_dropped)
    levels = [gate.level for gate in audit.gates if gate.level is not None]
    if not all(isclose(level * len(levels), audit.familywise_level, rel_tol=1e-9) for level in levels):
        yield "audit.gates, level", levels, "the familywise level, shared equally by the gates that have one"


def _contradictions(gate: SharedGate, audit: SharedAudit, n_sampled: int | None, n_dropped: int) -> Iterator[Fault]:
    """A figure that is not the one it should be, or a decision that does not follow from it."""
    where = f"audit.gates, {gate.name}"
    # the figure is the one of its name
    wanted, source = gate.value, ""
    if gate.name == DROPPED_SHARE and n_sampled is not None:
        wanted, source = rounded(n_dropped / max(1, n_sampled)), "n_dropped / n_sampled"
    elif gate.name == PLANTED_RECALL:
        wanted = None if audit.planted is None else audit.planted.mean_recall
        source = "null, as no copies were planted" if wanted is None else "audit.planted.mean_recall"
    elif gate.name == EVIDENCE:
        n_measured = sum(one.value is not None for one in audit.gates if one.name in LEAKAGE)
        wanted, source = float(n_measured), "the number of leakage gates that have a figure"
    elif gate.name in LEAKAGE:
        figure = next(one for one in audit.figures if one.name == gate.name)
        is_testable = gate.level is not None and figure.p is not None
        if gate.value is not None or is_testable:
            wanted, source = figure.value, "the value in audit.figures"
            if gate.p != figure.p:
                yield where, gate.p, f"with p {figure.p}, as in audit.figures"
                return
    if gate.value != wanted:
        yield where, gate.value, source
        return

    # the decision follows from it
    decision = _decided_again(gate, audit)
    if gate.decision != decision:
        yield where, f"{gate.value}, {gate.decision}", f"{decision}, as its figure and its limit {gate.limit:g} say"


def _decided_again(gate: SharedGate, audit: SharedAudit) -> str:
    if gate.value is None:
        return NOT_MEASURABLE
    if gate.name == DROPPED_SHARE:
        return decision_of_dropped(gate.value, gate.limit, audit.n_audited)
    if gate.name == PLANTED_RECALL and audit.planted is not None:
        return decision_of_recall(gate.value, audit.planted.n, audit.planted.found, gate.limit)
    if gate.name in LEAKAGE and gate.p is not None and gate.level is not None:
        return decision_of_test(KINDS[gate.name], gate.value, gate.limit, gate.p, gate.level)
    return PASSED if gate.value >= gate.limit else FAILED


def _out_of_bounds(gate: SharedGate) -> Iterator[Fault]:
    """Of one gate: its numbers, and which of them must be there."""
    where, numbers = f"audit.gates, {gate.name}", [gate.limit] if gate.value is None else [gate.limit, gate.value]
    if gate.decision not in DECISIONS:
        yield where, gate.decision, f"one of {DECISIONS}"
    if not all(abs(number) <= MAX_FIGURE for number in numbers) or not _is_p(gate.p) or not _is_p(gate.level):
        yield where, (*numbers, gate.p), f"numbers within {MAX_FIGURE:g} and p from 0 to 1"
    is_tested, has_value = gate.name in LEAKAGE, gate.value is not None
    if (gate.p is not None) != (is_tested and has_value) or (gate.level is None and is_tested and has_value):
        yield where, (gate.p, gate.level), "p and level of a leakage gate that has a figure, and of no other"
    if gate.level is not None and not is_tested:
        yield where, gate.level, "without a level, as there is no test"


def _faults_of_planted(planted: SharedPlanted | None) -> Iterator[Fault]:
    """Numbers that no filter finds."""
    if planted is None:
        return
    where, recall, share = "audit.planted", planted.mean_recall, planted.honest_dropped_share
    is_rounded = share in (None, rounded_share(share))
    yield from failing(
        (f"{where}.n", planted.n, 1 <= planted.n <= MAX_PLANTED, f"1 to {MAX_PLANTED}"),
        (f"{where}.found", planted.found, 0 <= planted.found <= planted.n, "0 to n"),
        (f"{where}.mean_recall", recall, _is_mean_recall(planted), "0 to 1, as found says"),
        (f"{where}.honest_dropped_share", share, is_rounded, "0 to 1 in whole per cent, or null"),
    )


def _is_mean_recall(planted: SharedPlanted) -> bool:
    """A mean of shares over kinds is 0 or 1 where nothing or everything was found, and else between."""
    if planted.found in (0, planted.n):
        return planted.mean_recall == (0.0 if planted.found == 0 else 1.0)
    return 0 < planted.mean_recall <= 1


def _of(figure: SharedFigure, metric: Metric) -> Iterator[Fault]:
    """Of one figure: value and interval in order and in bounds."""
    where, numbers = f"audit.figures, {figure.name}", (figure.low, figure.value, figure.high)
    present = [number for number in numbers if number is not None]
    if not present and figure.p is None:
        return
    lower, upper = max(metric.lower, -MAX_FIGURE), min(metric.upper, MAX_FIGURE)
    if len(present) < len(numbers) or not lower <= present[0] <= present[1] <= present[2] <= upper:
        yield where, numbers, f"low, value and high in this order, from {lower:g} to {upper:g}"
    if not _is_p(figure.p):
        yield where, figure.p, "a p from 0 to 1"


def _is_p(p: float | None) -> bool:
    return p is None or 0 <= p <= 1


def rounded_share(share: float | None) -> float | None:
    """In whole per cent from 0 to 1: of more digits the number of images follows."""
    return None if share is None else round(min(1.0, max(0.0, share)), 2)


def failing(*checks: tuple[str, object, bool, str]) -> Iterator[Fault]:
    """Of checks (key, its value, whether it holds, what the value must be) those that do not hold."""
    return ((key, value, wanted) for key, value, holds, wanted in checks if not holds)
