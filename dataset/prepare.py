"""A raw download as a source for experiments, with a report of what was found, left out and why.

    python -m dataset.prepare qata --raw ~/Downloads/QaTa-COV19 --out data/qata n_sites=2,8
    python -m dataset.prepare my_dataset.py --raw /data/mine --out data/mine

The second form runs a file of your own that holds an ``IMPORTER`` (docs/data.md). ``--help`` lists all importers with
their options. Run again, the command converts what changed. Exit code 1 on bad data.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from common.errors import InputError
from common.progress import shown_progress
from dataset import importers
from dataset.about import About, load_about
from dataset.importer import Importer
from dataset.key_values import describe_fields, settings_from_text, split_arguments
from dataset.preparation import SOURCE, prepare_source

log = logging.getLogger(__name__)

IMPORTERS = tuple(sorted(module.name for module in pkgutil.iter_modules(importers.__path__)))  # each has an IMPORTER
_WHERE = "python -m dataset.prepare"


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
            "no IMPORTER in this file", where=name, fix="define IMPORTER = Importer(...), see docs/data.md"
        )
    about = getattr(module, "ABOUT", About())
    assert isinstance(about, About)
    return own, about


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 when the source is written, 1 on bad data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asks_help = bool({"-h", "--help"} & set(arguments))
    parsed = _parser(_describe_importers() if asks_help else "").parse_intermixed_args(list(arguments))
    try:
        importer, about = load_importer(parsed.name)
        options: Any = settings_from_text(importer.options, split_arguments(parsed.settings, _WHERE), _WHERE)
        with shown_progress() as progress:
            prepared = prepare_source(importer, parsed.raw, parsed.out, options, about, parsed.workers, progress)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(prepared.report.text())
    sys.stdout.write(f"converted now: {prepared.n_converted} of {prepared.report.n_kept} images into {parsed.out}\n")
    if (parsed.out / SOURCE).is_file():
        sys.stdout.write(f"keys for experiments: {parsed.out / SOURCE}\n")
    return 0


def _parser(epilog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_WHERE,
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="an importer's name, or a Python file with an IMPORTER in it")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the unpacked download; only read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the data.root of experiments")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: all CPUs)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the importer's options")
    return parser


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
            f"no importer {str(path)!r}; there are {', '.join(IMPORTERS)}",
            where=_WHERE,
            fix="use one of these names, or the path of a Python file with an IMPORTER in it",
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look up the types of their fields there
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
