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

from common.errors import InputError
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
    exit_codes: list[int] = []  # one a Hydra job: a failing fold of a multirun must not stop the others
    offer_schema(experiment)

    def job(composed: DictConfig) -> None:
        from pipeline.launch import run_experiment

        values = OmegaConf.to_container(composed, resolve=True)
        exit_codes.append(run_experiment(experiment, values))  # type: ignore[arg-type]

    hydra.main(version_base="1.3", config_path=str(experiment.config_folder), config_name="demo")(job)()
    sys.exit(max(exit_codes, default=0))
