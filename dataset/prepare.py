"""A raw download as a source for experiments, with a report of what was found, left out and why.

    python -m dataset.prepare qata --raw ~/Downloads/QaTa-COV19 --out data/qata n_sites=2,8
    python -m dataset.prepare my_dataset.py --raw /data/mine --out data/mine

The second form runs a file of your own that holds an ``IMPORTER`` (docs/data.md). The same command again converts
what changed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from common.command import command
from common.errors import InputError
from common.progress import shown_progress
from dataset import importers
from dataset.about import About, load_about
from dataset.importer import Importer
from dataset.key_values import WHERE, describe_fields, settings_from_text, split_arguments
from dataset.preparation import SOURCE, prepare_source

IMPORTERS = tuple(sorted(module.name for module in pkgutil.iter_modules(importers.__path__)))  # each has an IMPORTER


def load_importer(name: str) -> tuple[Importer, About]:
    """The importer of that name, or the ``IMPORTER`` (and ``ABOUT``, if any) in the Python file of that path.

    Raises:
        InputError: neither.
    """
    if name in IMPORTERS:
        importer: Importer = importlib.import_module(f"{importers.__name__}.{name}").IMPORTER
        return importer, load_about(name)
    module = _load_file(Path(name))
    own = getattr(module, "IMPORTER", None)
    if not isinstance(own, Importer):
        raise InputError(
            "this file has no IMPORTER", where=name, fix="define IMPORTER = Importer(...), see docs/data.md"
        )
    about = getattr(module, "ABOUT", About())
    assert isinstance(about, About)
    return own, about


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="an importer's name, or a Python file with an IMPORTER in it")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the unpacked download; only read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the data.root of experiments")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: all CPUs)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the importer's options, listed below")
    parser.epilog = _describe_importers()


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Write the source and print its report."""
    importer, about = load_importer(chosen.name)
    options: Any = settings_from_text(importer.options, split_arguments(chosen.settings, WHERE), WHERE)
    with shown_progress() as progress:
        prepared = prepare_source(importer, chosen.raw, chosen.out, options, about, chosen.workers, progress)
    sys.stdout.write(prepared.report.text())
    sys.stdout.write(f"converted now: {prepared.n_converted} of {prepared.report.n_kept} images into {chosen.out}\n")
    if (chosen.out / SOURCE).is_file():
        sys.stdout.write(f"keys for experiments: {chosen.out / SOURCE}\n")


def _describe_importers() -> str:
    lines = ["importers and their options:"]
    for name in IMPORTERS:
        importer, _ = load_importer(name)
        lines += ["", f"  {name}  {importer.summary}"]
        lines += [f"      {line}" for line in describe_fields(importer.options)]
    return "\n".join(lines)


def _load_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise InputError(
            f"there is no importer {str(path)!r}; there are {', '.join(IMPORTERS)}",
            where=WHERE,
            fix="use one of these names, or the path of a Python file with an IMPORTER in it",
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look up the types of their fields there
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
