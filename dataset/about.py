"""What must be known of a dataset before it is used: where it comes from, and on which terms."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, field
from typing import Any

from common.errors import InputError
from common.settings import from_dict


@dataclass(frozen=True)
class About:
    """The ``about`` block of ``config/data/<name>.yaml``; a count of 0 means that none is published."""

    title: str = ""
    source: str = ""  # where to get it
    licence: str = ""
    citation: str = ""
    ethics: str = ""
    n_images: int = 0  # expected after preparation
    n_images_of_site: dict[str, int] = field(default_factory=dict)  # where sites differ
    n_slices_of_site: dict[str, int] = field(default_factory=dict)  # of volumes, about
    n_patients: int = 0
    sha256: dict[str, str] = field(default_factory=dict)  # file relative to the raw folder -> hex digest, as published

    def __post_init__(self) -> None:
        wrong = [name for name, digest in self.sha256.items() if len(digest) != 64]
        if wrong:
            raise TypeError(f"about.sha256[{wrong[0]}] is no SHA-256 of 64 hexadecimal digits")


def load_about(name: str) -> About:
    """Read the ``about`` block of ``config/data/<name>.yaml``; an empty ``About`` where there is no such file or block.

    Raises:
        InputError: the block has unknown keys or values of the wrong type.
    """
    import yaml

    file = importlib.resources.files("config") / "data" / f"{name}.yaml"
    if not file.is_file():
        return About()
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    try:
        return from_dict(About, content.get("about", {}), "about")
    except TypeError as error:
        raise InputError(str(error), where=str(file), fix="see the fields of dataset.about.About") from error
