"""The memorization study as markdown: what the filter dropped, every gate with its figure, and the goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.markdown import markdown_table

OVERTRAINED, WELL_TRAINED = "overtrained", "well-trained"
SAMPLES, TRUNCATED, BETWEEN, UNSEEN = "samples", "truncated", "between two samples", "real images of unseen patients"
KINDS = (SAMPLES, TRUNCATED, BETWEEN, UNSEEN)
LIMITS = ("0.95", "0.9", "0.85")  # of the pixels' correlation, as JSON names them
ALL_SAMPLES, KEPT = "all samples", "kept by the filter"
CLOSEST, C_T, MEMBERSHIP = "closest-record share", "C_T", "membership AUC"
REFUSED = "refused"
WANTED_RECALL, WANTED_FALSE_DROPS, WANTED_KAPPA = 0.95, 0.05, 0.95
WANTED_C_T, WANTED_EXCESS_AUC = -3.0, 0.02
DEVIATIONS_IN_INTERVAL = 3.92  # standard deviations that a normal 95 % interval is wide


FILTER_COLUMNS = (
    *("generator", "images", "dropped [95 %]", *(f"dropped of copies by pixels, {limit}" for limit in LIMITS)),
    *("dropped, calibrated on the trained-on alone", "pixel correlation: quartiles, largest"),
)
GATE_COLUMNS = ("gate", "figure", "unit", "limit", "p", "decision", "reason")
GOAL_COLUMNS = ("goal", "measured", "met")
NO_COPIES = "no copies among the samples"


def format_study(study: Mapping[str, Any]) -> list[str]:
    """The three tables, with the sizes of either site before them."""
    parts = {name: study["parts"][name] for name in (OVERTRAINED, WELL_TRAINED)}
    lines, filtered, audited = [], [], []
    for name, part in parts.items():
        sets = ", ".join(
            f"{key.replace('_', ' ')} {part['n_images'][key]} images of {part['n_patients'][key]} patients"
            for key in ("trained_on", "beside", "unseen")
        )
        agreed = f"{part['same_in_all_calibrations']:.3f} of the decisions the same in all calibrations"
        lines.append(f"- {name}: {sets}; {part['n_calibration']} calibrate, level {part['level']:.3f}; {agreed}")
        filtered += [_filter_row(name, kind, part["filter"][kind]) for kind in KINDS if kind in part["filter"]]
        for stage in (ALL_SAMPLES, KEPT):
            audit = part["audits"][stage]
            n_looked_at = f"{audit['n_kept']} images of {audit['n_sampled']}"
            audited += ["", f"{name}, {stage} ({n_looked_at}): {audit['verdict']}", ""]
            audited += markdown_table(GATE_COLUMNS, [_gate_row(gate) for gate in audit["gates"]])
    tables = ["", *markdown_table(FILTER_COLUMNS, filtered), *audited, ""]
    return [*lines, *tables, *markdown_table(GOAL_COLUMNS, goals(study))]


def _filter_row(name: str, kind: str, row: Mapping[str, Any]) -> Sequence[str]:
    found = [row["copies_dropped"][limit] for limit in LIMITS]
    return (
        *(name, kind, _share(row["dropped"])),
        *("none" if of_copies is None else _share(of_copies) for of_copies in found),
        _share(row["dropped_by_trained_on_alone"]),
        ", ".join(f"{quantile:.2f}" for quantile in row["correlation_quantiles"]),
    )


def _gate_row(gate: Mapping[str, Any]) -> Sequence[str]:
    return (
        gate["name"],
        "-" if gate["value"] is None else f"{gate['value']:.3g}",
        gate["unit"],
        f"{gate['comparison']} {gate['limit']:g}",
        "-" if gate["p"] is None else f"{gate['p']:.3g}",
        gate["decision"],
        gate["reason"],
    )


def goals(study: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(goal, what was measured, met: yes, no or not measured)."""
    copying, honest, kappa = study["parts"][OVERTRAINED], study["parts"][WELL_TRAINED], study["kappa"]
    rows: list[tuple[str, str, str]] = []
    # of the generator that copies
    for limit in LIMITS:
        found = copying["filter"][SAMPLES]["copies_dropped"][limit]
        wanted = f"(pixels correlate by {limit}) at least {WANTED_RECALL:.0%} dropped"
        met = "not measured" if found is None else _yes(found[0] >= WANTED_RECALL * found[1])
        measured = NO_COPIES if found is None else _share(found)
        rows.append((f"of the overtrained generator's copies {wanted}", measured, met))
    verdict = copying["audits"][KEPT]["verdict"]
    rows.append(("its export refused", verdict, _yes(verdict == REFUSED)))
    # of the well-trained one
    dropped, audit = honest["filter"][SAMPLES]["dropped"], honest["audits"][KEPT]
    most = f"of the well-trained generator's samples at most {WANTED_FALSE_DROPS:.0%} dropped, within the interval"
    rows.append((most, _share(dropped), _yes(dropped[2] <= WANTED_FALSE_DROPS)))
    rows.append(("its export passes", audit["verdict"], _yes(audit["verdict"] != REFUSED)))
    figures = {figure["name"]: figure for figure in audit["figures"]}
    for goal, name, holds in FIGURE_GOALS:
        figure = figures[name]
        if figure["value"] is None:
            rows.append((goal, figure["reason"], "not measured"))
        else:
            measured = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}], p = {figure['p']:.2g}"
            rows.append((goal, measured, _yes(holds(figure))))
    agreement = f"kappa between {study['n_calibrations']} calibrations at least {WANTED_KAPPA:g}"
    return [*rows, (agreement, f"{kappa:.3f}", _yes(kappa >= WANTED_KAPPA))]


def _is_near_half(share: Mapping[str, Any]) -> bool:
    """Within two standard deviations of the share over relabelled patients."""
    return bool(abs(share["value"] - 0.5) <= 2 * (share["high"] - share["low"]) / DEVIATIONS_IN_INTERVAL)


FIGURE_GOALS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("DCR share of the kept within 0.5 ± 2 standard deviations", CLOSEST, _is_near_half),
    (f"C_T of the kept above {WANTED_C_T:g}", C_T, lambda figure: figure["value"] > WANTED_C_T),
    (
        f"best attack's AUC minus control at most {WANTED_EXCESS_AUC:g}, kept images",
        MEMBERSHIP,
        lambda figure: figure["value"] <= WANTED_EXCESS_AUC,
    ),
)


def _share(found: Sequence[float]) -> str:
    """``found``, n and the interval as ``recall_of`` counts them."""
    n_found, n, low, high = found
    return f"{n_found:.0f} of {n:.0f}: {n_found / n:.3f} [{low:.3f}, {high:.3f}]"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"
