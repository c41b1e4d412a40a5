"""The main experiment: ``python run_nnunet.py --config-name=<experiment> [key=value ...]``.

Experiments stand in ``config/federated/``. The same command resumes; ``dry_run=true`` shows what would run.
"""

from __future__ import annotations

import logging
import sys

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from common.settings import to_dict
from pipeline.config import ExperimentConfig


class SharedGroups(SearchPathPlugin):
    """Lets every experiment, wherever its YAML lies, use the groups of ``config/``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add ``config/`` itself after the folder of the experiments."""
        search_path.append("autoshare", "pkg://config")


ConfigStore.instance().store(name="schema", node=to_dict(ExperimentConfig()))
Plugins.instance().register(SharedGroups)
log = logging.getLogger("autoshare")
exit_codes: list[int] = []  # one a Hydra job: a failing fold of a multirun must not stop the others


@hydra.main(version_base="1.3", config_path="config/federated", config_name="demo")
def main(composed: DictConfig) -> None:
    """Hand the composed configuration over."""
    from pipeline.launch import run_experiment

    exit_codes.append(run_experiment(OmegaConf.to_container(composed, resolve=True)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
    sys.exit(max(exit_codes, default=0))
