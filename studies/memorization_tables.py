"""The memorization study as markdown: what the filter dropped, every gate with its figure, and the goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studies.comparison_tables import markdown_table

OVERTRAINED, WELL_TRAINED = "overtrained", "well-trained"
SAMPLES, TRUNCATED, BETWEEN, UNSEEN = "samples", "truncated", "between two samples", "real images of unseen patients"
KINDS = (SAMPLES, TRUNCATED, BETWEEN, UNSEEN)
LIMITS = ("0.95", "0.9", "0.85")  # of the pixels' correlation, as JSON names them
ALL_SAMPLES, KEPT = "all samples", "kept by the filter"
CLOSEST, C_T, MEMBERSHIP = "closest-record share", "C_T", "membership AUC"
REFUSED, PASSED = "refused", "passed"
WANTED_RECALL, WANTED_FALSE_DROPS, WANTED_KAPPA = 0.95, 0.05, 0.95
WANTED_C_T, WANTED_EXCESS_AUC = -3.0, 0.02
DEVIATIONS_IN_INTERVAL = 3.92  # standard deviations that a normal 95 % interval is wide


def format_study(study: Mapping[str, Any]) -> list[str]:
    """The three tables, with the sizes of either site before them."""
    parts = {name: study["parts"][name] for name in (OVERTRAINED, WELL_TRAINED)}
    lines = [line for name, part in parts.items() for line in _site_lines(name, part)]
    lines += [
        "",
        *markdown_table(FILTER_COLUMNS, [row for name, part in parts.items() for row in _filter_rows(name, part)]),
    ]
    for name, part in parts.items():
        for stage in (ALL_SAMPLES, KEPT):
            audit = part["audits"][stage]
            n_looked_at = f"{audit['n_kept']} images of {audit['n_sampled']}"
            lines += ["", f"{name}, {stage} ({n_looked_at}): {audit['verdict']}", ""]
            lines += markdown_table(GATE_COLUMNS, [_gate_row(gate) for gate in audit["gates"]])
    return [*lines, "", *markdown_table(GOAL_COLUMNS, goals(study))]


FILTER_COLUMNS = (
    *("generator", "images", "dropped [95 %]", *(f"dropped of copies by pixels, {limit}" for limit in LIMITS)),
    *("dropped, calibrated on the trained-on alone", "pixel correlation: quartiles, largest"),
)
GATE_COLUMNS = ("gate", "figure", "limit", "p", "passed", "reason")
GOAL_COLUMNS = ("goal", "measured", "met")


def _site_lines(name: str, part: Mapping[str, Any]) -> list[str]:
    sides = ", ".join(
        f"{side.replace('_', ' ')} {part['n_images'][side]} images of {part['n_patients'][side]} patients"
        for side in ("trained_on", "beside", "unseen")
    )
    agreed = f"{part['same_in_all_calibrations']:.3f} of the decisions the same in all calibrations"
    return [f"- {name}: {sides}; {part['n_calibration']} calibrate, level {part['level']:.3f}; {agreed}"]


def _filter_rows(name: str, part: Mapping[str, Any]) -> list[Sequence[str]]:
    return [_filter_row(name, kind, part["filter"][kind]) for kind in KINDS if kind in part["filter"]]


def _filter_row(name: str, kind: str, row: Mapping[str, Any]) -> Sequence[str]:
    found = [row["copies_dropped"][limit] for limit in LIMITS]
    return (
        *(name, kind, _share(row["dropped"])),
        *("none" if of_copies is None else _share(of_copies) for of_copies in found),
        _share(row["dropped_by_trained_on_alone"]),
        ", ".join(f"{quantile:.2f}" for quantile in row["correlation_quantiles"]),
    )


def _gate_row(gate: Mapping[str, Any]) -> Sequence[str]:
    beyond = "at most" if gate["safer"] == "lower" else "at least"
    return (
        gate["name"],
        "-" if gate["value"] is None else f"{gate['value']:.3g}",
        f"{beyond} {gate['limit']:g}",
        "-" if gate["p"] is None else f"{gate['p']:.3g}",
        _yes(gate["passed"]),
        gate["reason"],
    )


def goals(study: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(goal, what was measured, met: yes, no or not measured)."""
    copying, honest = study["parts"][OVERTRAINED], study["parts"][WELL_TRAINED]
    kappa = study["kappa"]
    agreement = (f"kappa between {study['n_calibrations']} calibrations at least {WANTED_KAPPA:g}", f"{kappa:.3f}")
    return [*_goals_of_copies(copying), *_goals_of_honest(honest), (*agreement, _yes(kappa >= WANTED_KAPPA))]


def _goals_of_copies(part: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found, verdict = part["filter"][SAMPLES]["copies_dropped"], part["audits"][KEPT]["verdict"]
    recalls = [_recall_goal(limit, found[limit]) for limit in LIMITS]
    return [*recalls, ("its export refused", verdict, _yes(verdict == REFUSED))]


def _recall_goal(limit: str, found: Sequence[float] | None) -> tuple[str, str, str]:
    goal = f"of the overtrained generator's copies (pixels correlate by {limit}) at least {WANTED_RECALL:.0%} dropped"
    if found is None:
        return goal, "no copies among the samples", "not measured"
    return goal, _share(found), _yes(found[0] >= WANTED_RECALL * found[1])


def _goals_of_honest(part: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    dropped, audit = part["filter"][SAMPLES]["dropped"], part["audits"][KEPT]
    figures = {figure["name"]: figure for figure in audit["figures"]}
    most = f"of the well-trained generator's samples at most {WANTED_FALSE_DROPS:.0%} dropped, within the interval"
    return [
        (most, _share(dropped), _yes(dropped[2] <= WANTED_FALSE_DROPS)),
        ("its export passes", audit["verdict"], _yes(audit["verdict"] == PASSED)),
        _closest_record_goal(figures[CLOSEST]),
        _limit_goal(f"C_T of the kept above {WANTED_C_T:g}", figures[C_T], lambda value: value > WANTED_C_T),
        _limit_goal(
            f"best attack's AUC minus control at most {WANTED_EXCESS_AUC:g}, kept images",
            figures[MEMBERSHIP],
            lambda value: value <= WANTED_EXCESS_AUC,
        ),
    ]


def _closest_record_goal(figure: Mapping[str, Any]) -> tuple[str, str, str]:
    """The deviation is that of the share over relabelled patients."""
    goal = "DCR share of the kept within 0.5 ± 2 standard deviations"
    if figure["value"] is None:
        return goal, figure["reason"], "not measured"
    deviation = (figure["high"] - figure["low"]) / DEVIATIONS_IN_INTERVAL
    measured = f"{figure['value']:.3f}, standard deviation {deviation:.3f}, p = {figure['p']:.2g}"
    return goal, measured, _yes(abs(figure["value"] - 0.5) <= 2 * deviation)


def _limit_goal(goal: str, figure: Mapping[str, Any], holds: Callable[[float], bool]) -> tuple[str, str, str]:
    if figure["value"] is None:
        return goal, figure["reason"], "not measured"
    measured = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}], p = {figure['p']:.2g}"
    return goal, measured, _yes(holds(figure["value"]))


def _share(found: Sequence[float]) -> str:
    """``found``, n and the interval as ``recall_of`` counts them."""
    n_found, n, low, high = found
    return f"{n_found:.0f} of {n:.0f}: {n_found / n:.3f} [{low:.3f}, {high:.3f}]"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"
