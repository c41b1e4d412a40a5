"""What an experiment is: one object that says what is configured, done, written and reported.

``pipeline.entry.start`` runs any of them. A new experiment is a dataclass of settings derived from ``RunConfig``, a
function that builds its stage graph, and an ``Experiment``; see docs/architecture.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json, write_json
from common.settings import to_dict
from engine.graph import Graph
from evaluation.report.run import RunFiles
from evaluation.report.sections import IMAGES, STANDARD, Section
from features.embedders import check_embedder
from generators.registry import find_generator
from pipeline.config import ExperimentConfig, RunConfig, check_experiment, read_config
from pipeline.experiment import build_graph
from pipeline.site_data import SiteData, check_data, read_sites
from pipeline.stage_factory import ALL
from pipeline.tables import experiment_in_words, gate_prospects, write_fold_tables
from pipeline.unions import Union

log = logging.getLogger(__name__)

CONFIG = Path(__file__).resolve().parent.parent / "config"


@dataclass(frozen=True)
class Experiment:
    """An experiment. ``Config`` below is its ``config_type``; only the first five fields must be given."""

    name: str  # as its script and its tables call it
    imported_as: str  # ``module:NAME`` of this object, by which a report finds it again
    config_folder: Path  # of its YAML files, each of which starts from ``/schema``
    config_type: type[RunConfig]
    build_graph: Callable[[Any, Sequence[str]], Graph]  # (Config, sites) -> its stages
    report_sections: tuple[Section, ...] = STANDARD
    check: Callable[[Any], Any] = lambda config: config  # Config -> Config; InputError on values that do not fit
    read_sites: Callable[[Any], SiteData] = lambda config: SiteData(())
    describe: Callable[[Any, SiteData], list[str]] = lambda config, data: []  # lines of the dry run
    begin: Callable[[Any, Path, SiteData], None] = lambda config, run, data: None  # before the first stage
    write_results: Callable[[Path, Mapping[str, Path]], None] = lambda fold, finished: None  # stage id -> folder

    def configure(self, values: Mapping[str, Any]) -> Any:
        """A composed configuration as ``config_type``, checked.

        Raises:
            InputError: an unknown key, a wrong type, or a value that is not allowed.
        """
        return self.check(read_config(self.config_type, values))


def _begin(config: ExperimentConfig, run: Path, data: SiteData) -> None:
    """Check embedder and data, and write which sites stand behind the names in the tables of a scaling study."""
    if config.evaluation.synthetic:
        check_embedder(config.memorization.embedder, config.memorization.weights)
    check_data(config, run, data)
    if config.evaluation.synthetic:
        for line in gate_prospects(config, data.cases):
            log.info("%s", line)
    unions = config.scaling.named_unions(data.sites)
    for fold in config.folds if unions else ():
        named = [to_dict(union) for union in (*unions, Union(ALL, data.sites))]
        write_json(run / f"fold_{fold}" / "scaling.json", {"unions": named})


def _generator_section(files: RunFiles) -> str | None:
    """What the run's generator itself has to say, where its adapter has a section of its own."""
    for folder in files.stage_folders("generator"):
        settings = read_json(folder.path / "manifest.json")["settings"]
        try:
            section = find_generator(settings.get("adapter", settings["name"])).report_section
        except InputError as error:
            return f"Its adapter may have a section of its own, and cannot be loaded here. {error}"
        return section(files) if section else None
    return None


_AFTER_IMAGES = STANDARD.index(IMAGES) + 1
NNUNET = Experiment(
    name="nnunet",
    imported_as="pipeline.experiments:NNUNET",
    config_folder=CONFIG / "nnunet",
    config_type=ExperimentConfig,
    build_graph=build_graph,
    report_sections=(
        *STANDARD[:_AFTER_IMAGES],
        Section("generator", "The generator", _generator_section),
        *STANDARD[_AFTER_IMAGES:],
    ),
    check=check_experiment,
    read_sites=read_sites,
    describe=experiment_in_words,
    begin=_begin,
    write_results=write_fold_tables,
)
FEDERATED = replace(
    NNUNET, name="federated", imported_as="pipeline.experiments:FEDERATED", config_folder=CONFIG / "federated"
)
SCALING = replace(NNUNET, name="scaling", imported_as="pipeline.experiments:SCALING", config_folder=CONFIG / "scaling")
