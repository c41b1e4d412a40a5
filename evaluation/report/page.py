"""``report.html``: one self-contained page about a run, built from the files of whatever stages are done.

``python -m evaluation.report runs/<exp_name>`` rebuilds it over all folds.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.files import write_text
from evaluation.report.approaches import write_scaling
from evaluation.report.html import TEMPLATES, absent
from evaluation.report.run import RunFiles, find_folds
from evaluation.report.sections import STANDARD, Section
from evaluation.report.subgroups import write_subgroups
from evaluation.results import write_table

log = logging.getLogger(__name__)

WARNING = "This report contains images of real patients and must stay at the site. Only what is in share/ may leave."


def write_report(
    run: Path,
    folds: Sequence[int] | None = None,
    out: Path | None = None,
    sections: Sequence[Section] = STANDARD,
) -> Path:
    """Write ``report.html`` (and ``summary.csv`` where there are results) into ``out``, else into ``run``.

    Args:
        run: ``runs/<exp_name>``.
        folds: outer folds to include; all that have a folder if None.
        out: folder to write to.
        sections: in the page's order.

    Raises:
        InputError: the run has no fold folder.
    """
    files, folder = _run_files(run, folds), out or run
    built = [(section, _build(section, files)) for section in sections]
    tables = {"summary.csv": _write_summary, "scaling.csv": write_scaling, "subgroups.csv": write_subgroups}
    for name, write in tables.items():
        try:
            write(files, folder / name)
        except InputError as error:
            log.warning("no %s: %s", name, error)
    title, fold_names = f"autoshare: {run.resolve().name}", ", ".join(map(str, files.folds))
    subtitle = f"Outer fold{'s' if len(files.folds) > 1 else ''} {fold_names}"
    shown = [(section, body) for section, body in built if body is not None]
    template = TEMPLATES.get_template("page.html")
    write_text(folder / "report.html", template.render(title=title, subtitle=subtitle, warning=WARNING, sections=shown))
    return folder / "report.html"


def _run_files(run: Path, folds: Sequence[int] | None = None) -> RunFiles:
    chosen = find_folds(run) if folds is None else tuple(sorted(folds))
    if not chosen:
        raise InputError(
            "the folder has no fold_<k> in it", where=run, fix="give the folder runs/<exp_name> of a started run"
        )
    return RunFiles(run, chosen)


def _build(section: Section, files: RunFiles) -> str | None:
    """The section's HTML, or a line that says why it could not be built: the report must not fail the run."""
    try:
        return section.build(files)
    except Exception as error:
        log.exception("the section %r is left out of the report", section.title)
        return absent(f"This section could not be built ({type(error).__name__}: {error}).")


def _write_summary(files: RunFiles, path: Path) -> None:
    if files.summary is not None:
        write_table(path, files.summary)


def sections_of_run(files: RunFiles) -> Sequence[Section]:
    """The sections of the experiment that ``run.json`` names (``module:NAME``); the standard ones if it names none.

    Raises:
        InputError: the experiment cannot be imported here, or brings no sections.
    """
    name = files.run_notes().get("experiment")
    if name is None:  # a run made before experiments were named
        return STANDARD
    module, _, attribute = str(name).partition(":")
    try:
        sections: Sequence[Section] = getattr(importlib.import_module(module), attribute).report_sections
    except (ImportError, AttributeError, ValueError) as error:
        fix = "install the package that the run was made with, so that its experiment can be imported"
        where = files.folder(files.folds[0]) / "run.json"
        raise InputError(f"the experiment {name} cannot be imported ({error})", where=where, fix=fix) from error
    return sections


def rebuild_report(run: Path, folds: Sequence[int] | None, out: Path | None) -> Path:
    """Write the report of a run again, with the sections of the experiment that it names.

    Raises:
        InputError: the folder is no run, or its experiment cannot be imported.
    """
    return write_report(run, folds, out, sections_of_run(_run_files(run, folds)))
