"""The report's section on privacy: what each site's audit measured, what its gates decided, which patients are exposed.

It stays at the site: the audit holds numbers of real images, and the exposures name patients.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report import html as page
from evaluation.report.fields import format_number
from evaluation.report.pictures import exposure_figure
from evaluation.report.planted import planted_part
from evaluation.report.run import RunFiles, StageFolder, read_mapping

EARLIER_RELEASE = "this audit was written by an earlier release; the same run command makes it again"
N_EXPOSED = 5  # patients that the table names
COUNTS = {
    "real images trained on": ("n_train_images", "n_train_patients"),
    "real images held out": ("n_heldout_images", "n_heldout_patients"),
    "synthetic images sampled": ("n_sampled",),
    "dropped by the filter": ("n_dropped",),
    "kept": ("n_kept",),
    "of these audited": ("n_audited",),
}
HEADER = ("figure", "value", "unit", "95 % interval", "safer if", "baseline", "p", "limit", "fails at p", "gate")
STAYS = (
    "This section must stay at the site: it holds numbers of real images and names patients. A package contains only "
    "the figures and the decisions of the gates. A leakage gate fails if its value does not keep its limit and its p "
    "over relabelled patients is at most its level. If nothing leaks, the leakage gates together fail with a "
    "probability of at most {family:g}. The baseline is the value that is expected if nothing leaks. A gate that is "
    "not measurable has neither passed nor failed: nothing is known of what it looks for."
)


def privacy_section(files: RunFiles) -> page.Html | None:
    """Every site and fold that has been audited; None where none has."""
    found = [(folder, read_mapping(folder.path / "audit.json")) for folder in files.stage_folders("audit")]
    audits = [(folder, audit) for folder, audit in found if audit]
    if not audits:
        return None
    return page.join(planted_part(files), *(_site(folder, audit) for folder, audit in audits))


def _site(folder: StageFolder, audit: Mapping[str, Any]) -> page.Html:
    gates = {gate["name"]: gate for gate in audit["gates"]}
    if not all("decision" in gate for gate in gates.values()):
        return page.paragraph(f"Site {folder.site}, fold {folder.fold}: {EARLIER_RELEASE}")
    family = audit["familywise_level"]
    of_patients = _exposures(folder.path / "exposure.csv")
    caption = f"Site {folder.site}, fold {folder.fold}: synthetic images whose nearest training image is a patient's"
    return page.join(
        page.heading(f"Site {folder.site}, fold {folder.fold}"),
        _verdict(audit["verdict"], list(gates.values())),
        page.note(STAYS.format(family=family)),
        page.table(["What", "Number"], [[name, _count(audit, keys)] for name, keys in COUNTS.items()]),
        page.table(HEADER, _rows(audit["figures"], gates), text=True),
        page.details(
            "What the figures mean", page.table(["figure", "meaning"], _meanings(audit["figures"], gates), text=True)
        ),
        page.table(["Patient", "images", "synthetic images nearest"], of_patients[:N_EXPOSED]),
        page.picture(exposure_figure([int(row[2]) for row in of_patients]), caption) if of_patients else "",
    )


def _verdict(verdict: str, gates: Sequence[Mapping[str, Any]]) -> page.Html:
    """What became of the package; then the gates that failed, and those that say nothing."""
    failed, unmeasured = (
        [gate for gate in gates if gate["decision"] == decision] for decision in ("failed", "not measurable")
    )
    if failed:
        refused = "Refused: nothing leaves this site. Gates that failed: "
        said = refused if verdict == "refused" else "Gates failed, but the site does not enforce its gates: "
        said = page.element("div", said + _reasons(failed), "refused")
    else:
        every = "Every gate" if not unmeasured else "Every gate that could be measured"
        said = page.paragraph(f"{every} passed; the package was written.")
    if not unmeasured:
        return said
    nothing = f"Not measurable, so that nothing is known of what they look for: {_reasons(unmeasured)}"
    return page.join(said, page.element("div", nothing, "refused"))


def _reasons(gates: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{gate['name']}: {gate['reason']} (what would help: {gate['what_would_help']})" for gate in gates)


def _count(audit: Mapping[str, Any], keys: Sequence[str]) -> str:
    return f"{audit[keys[0]]} of {audit[keys[1]]} patients" if len(keys) > 1 else str(audit[keys[0]])


def _rows(figures: Sequence[Mapping[str, Any]], gates: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Every figure with its gate, then the gates without a figure."""
    named = {figure["name"] for figure in figures}
    rows = [_figure_row(figure, gates.get(figure["name"])) for figure in figures]
    for gate in gates.values():
        if gate["name"] not in named:
            safer = {"<=": "lower", ">=": "higher"}[gate["comparison"]]
            rows.append([gate["name"], _number(gate["value"]), gate["unit"], "", safer, "", "", *_decision(gate)])
    return rows


def _meanings(figures: Sequence[Mapping[str, Any]], gates: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What each figure says, and why it or its gate could not be measured."""
    says = {figure["name"]: figure["says"] for figure in figures}
    reasons = {
        gate["name"]: gate["reason"]
        for gate in gates.values()
        if gate["decision"] == "not measurable" or gate["name"] not in says
    }
    return [[name, " ".join(filter(None, (says.get(name), reasons.get(name))))] for name in {**says, **reasons}]


def _figure_row(figure: Mapping[str, Any], gate: Mapping[str, Any] | None) -> list[str]:
    decision = _decision(gate) if gate else ["", "", "no gate"]
    if figure["value"] is None:
        return [figure["name"], "not measurable", figure["unit"], "", figure["safer"], "", "", *decision]
    interval = f"{_number(figure['low'])} to {_number(figure['high'])}"
    measured = [interval, figure["safer"], _number(figure["baseline"]), _number(figure["p"])]
    return [figure["name"], _number(figure["value"]), figure["unit"], *measured, *decision]


def _decision(gate: Mapping[str, Any]) -> list[str]:
    """Its limit, the level of its p, and its decision."""
    limit = f"{gate['comparison']} {gate['limit']:g}"
    level = "" if gate["level"] is None else f"<= {gate['level']:.2g}"
    decision, value = gate["decision"], gate["value"]
    if decision == "passed" and value is not None:
        is_kept = value <= gate["limit"] if gate["comparison"] == "<=" else value >= gate["limit"]
        return [limit, level, decision if is_kept else "passed, as chance explains the value"]
    return [limit, level, page.element("span", decision, "failed")]


def _number(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _exposures(path: Path) -> list[list[str]]:
    """Patient, images, nearest synthetic images; most exposed first, as the file has them."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [[row["patient"], row["n_images"], row["n_nearest"]] for row in csv.DictReader(stream)]
