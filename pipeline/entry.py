"""The command line of the experiments: Hydra composes, the schema checks, ``pipeline.launch`` carries out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from common.command import exit_code_of
from common.errors import InputError
from common.exit_codes import ExitCode, code_of_sweep
from common.settings import to_dict
from pipeline.config import ExperimentConfig, experiment_config
from pipeline.experiments import NNUNET, Experiment


class SharedGroups(SearchPathPlugin):
    """Lets every experiment, wherever its YAML lies, use the groups of ``config/``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add ``config/`` itself after the folder of the experiments."""
        search_path.append("autoshare", "pkg://config")


Plugins.instance().register(SharedGroups)


def offer_schema(experiment: Experiment) -> None:
    """Let the YAML files of an experiment start from ``/schema``: every key of its configuration, with its default."""
    ConfigStore.instance().store(name="schema", node=to_dict(experiment.config_type()))


offer_schema(NNUNET)


def compose_experiment(name: str, overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment ``name`` of ``config/nnunet`` with these overrides, without running it.

    Raises:
        InputError: there is no such experiment, an override is none of its keys, or a value is not allowed.
    """
    try:
        with hydra.initialize_config_dir(str(NNUNET.config_folder), version_base="1.3"):
            composed = hydra.compose(name, overrides=list(overrides))
    except HydraException as error:
        raise InputError(str(error), where=name, fix="`python run_nnunet.py --cfg job` prints all keys") from error
    return experiment_config(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]


def start(experiment: Experiment) -> None:
    """Run what the command line names of the experiment's configurations; ends the process."""
    codes: list[int] = []  # one a Hydra job: a failing fold of a multirun must not stop the others
    offer_schema(experiment)

    def job(composed: DictConfig) -> None:
        from pipeline.launch import run_experiment

        codes.append(ExitCode.FAILED)  # until it is known better
        values = OmegaConf.to_container(composed, resolve=True)
        codes[-1] = run_experiment(experiment, values)  # type: ignore[arg-type]

    def jobs() -> ExitCode:
        folder = str(experiment.config_folder)
        try:
            hydra.main(version_base="1.3", config_path=folder, config_name="demo")(job)()
        except SystemExit as ended:  # Hydra has printed why
            if ended.code == 1:
                return code_of_sweep(codes) if codes else ExitCode.BAD_INPUT
            raise
        return code_of_sweep(codes)

    sys.exit(exit_code_of(jobs))
