"""The main experiment: ``python run_nnunet.py --config-name=<experiment> [key=value ...]``.

Experiments stand in ``config/nnunet/``. The same command resumes; ``dry_run=true`` shows what would run.
"""

from __future__ import annotations

import logging
import sys

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.errors import InputError
from common.settings import to_dict
from pipeline.config import ExperimentConfig, experiment_config

ConfigStore.instance().store(name="schema", node=to_dict(ExperimentConfig()))
log = logging.getLogger("autoshare")
exit_codes: list[int] = []  # one a Hydra job: a failing fold of a multirun must not stop the others


@hydra.main(version_base="1.3", config_path="config/nnunet", config_name="demo")
def main(composed: DictConfig) -> None:
    """Check the composed configuration and hand it over."""
    from pipeline.launch import EXIT_BAD_INPUT, launch

    try:
        code = launch(experiment_config(OmegaConf.to_container(composed, resolve=True)))  # type: ignore[arg-type]
    except InputError as error:
        log.error("%s", error)
        code = EXIT_BAD_INPUT
    exit_codes.append(code)


if __name__ == "__main__":
    main()
    sys.exit(max(exit_codes, default=0))
