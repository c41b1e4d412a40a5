"""The report's part on planted copies: how many each site's filter found, kind by kind, and what else it drops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evaluation.report import html as page
from evaluation.report.run import RunFiles, StageFolder, read_mapping

HOW_TO_READ = (
    "Each site's filter, with the settings that it used for the synthetic images, was given copies of the site's real "
    "images, changed in known ways. It would have dropped every copy that it finds. A number is red where the filter "
    "missed a copy. Honest images are real images, each compared with images of other patients only. Of these the "
    "filter should drop about the share that its level names."
)
PICTURE = "planted.png"


def planted_part(files: RunFiles) -> page.Html:
    """A table with a column a site, and a picture a site with every strength; empty where no site planted copies."""
    found = [(folder, read_mapping(folder.path / "planted.json")) for folder in files.stage_folders("audit")]
    audits = {_name(folder, files): audit for folder, audit in found if audit}
    if not audits:
        return page.Html("")
    pictures = [
        page.picture((folder.path / PICTURE).read_bytes(), f"{_name(folder, files)}: {caption}")
        for folder, audit in found
        if audit and (folder.path / PICTURE).is_file()
        for caption in [f"{audit['found']} of {audit['n']} planted copies found, by kind and strength"]
    ]
    header = ["Copies of real images, changed by", *audits]
    return page.join(
        page.heading("Planted copies"),
        page.note(HOW_TO_READ),
        page.table(header, {"all together": _together(audits.values()), **_kinds(list(audits.values()))}),
        page.note("Honest images: " + "; ".join(f"{name}: {_judged(audit)}" for name, audit in audits.items()) + "."),
        page.details("Every strength", page.join(*pictures)) if pictures else "",
    )


def _name(folder: StageFolder, files: RunFiles) -> str:
    return f"Site {folder.site}" + (f", fold {folder.fold}" if len(files.folds) > 1 else "")


def _kinds(audits: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Rows of the table by group of kinds; a site that another release audited may lack a kind."""
    groups: dict[str, dict[str, list[str]]] = {}
    for column, audit in enumerate(audits):
        for kind in audit["kinds"]:
            row = groups.setdefault(kind["group"], {}).setdefault(kind["kind"], ["-"] * len(audits))
            row[column] = _of(kind["found"], kind["n"], failed=kind["found"] < kind["n"])
    return {group: [[kind, *row] for kind, row in rows.items()] for group, rows in groups.items()}


def _together(audits: Collection[Mapping[str, Any]]) -> list[list[str]]:
    return [
        ["mean over kinds", *(f"{audit['mean_recall']:.3f}" for audit in audits)],
        ["all copies", *(_with_interval(audit["found"], audit["n"], audit["interval"]) for audit in audits)],
        ["honest images dropped", *(_honest(audit["honest"]) for audit in audits)],
        ["rule, level", *(f"{audit['rule']}, {audit['level']:.3g}" for audit in audits)],
    ]


def _judged(audit: Mapping[str, Any]) -> str:
    return "there are none" if audit["honest"] is None else str(audit["honest"]["judged"])


def _honest(honest: Mapping[str, Any] | None) -> str:
    return "-" if honest is None else _with_interval(honest["dropped"], honest["n"], honest["interval"])


def _with_interval(count: int, n: int, interval: Sequence[float]) -> page.Html:
    low, high = interval
    return page.join(_of(count, n), page.element("small", f"{low:.0%} to {high:.0%}"))


def _of(count: int, n: int, *, failed: bool = False) -> str:
    text = f"{count} of {n}"
    return page.element("span", text, "failed") if failed else text
