"""The report's sections by name; an experiment, and a generator of its own, says which of them its report has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evaluation.report.approaches import approaches_section, scaling_section
from evaluation.report.federated import federated_section
from evaluation.report.images import images_section
from evaluation.report.labels import labels_section
from evaluation.report.privacy import privacy_section
from evaluation.report.results import answer_section, more_results_section
from evaluation.report.run import RunFiles
from evaluation.report.sharing import filter_section, shared_section
from evaluation.report.stages import curves_section, identity_section, time_section
from evaluation.report.subgroups import subgroups_section


@dataclass(frozen=True)
class Section:
    """One section of the page.

    ``anchor`` is its id in the page, unique in a report. ``build`` gives its content from the files of a run, of
    whatever stages are done: ``Html`` as it is, any other text escaped, None where the run has no such part. An error
    in it leaves out this section alone.
    """

    anchor: str
    title: str
    build: Callable[[RunFiles], str | None]


ANSWER = Section("answer", "What sharing gained", answer_section)
APPROACHES = Section("approaches", "Comparison with other approaches", approaches_section)
SCALING = Section("scaling", "Gain with the number of contributing sites", scaling_section)
FEDERATED = Section("federated", "Training across sites", federated_section)
RESULTS = Section("results", "More results", more_results_section)
SUBGROUPS = Section("subgroups", "Subgroups of patients", subgroups_section)
IMAGES = Section("images", "Real and synthetic images", images_section)
LABELS = Section("labels", "Generated and predicted labels", labels_section)
FILTER = Section("filter", "Memorization filter", filter_section)
PRIVACY = Section("privacy", "Privacy", privacy_section)
SHARED = Section("shared", "What was shared", shared_section)
CURVES = Section("curves", "Training curves", curves_section)
TIME = Section("time", "Time per stage", time_section)
IDENTITY = Section("run", "This run", identity_section)

STANDARD = (
    *(ANSWER, APPROACHES, SCALING, FEDERATED, RESULTS, SUBGROUPS, IMAGES, LABELS, FILTER, PRIVACY, SHARED),
    *(CURVES, TIME, IDENTITY),
)
