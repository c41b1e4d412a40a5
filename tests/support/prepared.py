"""What an experiment reads of a prepared source."""

from pathlib import Path

import yaml

from common.settings import from_dict
from dataset.preparation import SOURCE
from dataset.source import SourceConfig


def source_config(root: Path) -> SourceConfig:
    """The keys in ``root/source.yaml``, with ``root`` itself."""
    return from_dict(SourceConfig, {**yaml.safe_load((root / SOURCE).read_text()), "root": str(root.resolve())})
