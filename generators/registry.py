"""How a generator is found: by the name of one that the installation has, or by its adapter, ``module:Class``.

``config/generator/*.yaml`` is the only list of those that the installation has: each file states ``name`` and
``adapter``. Modules are imported by that text alone, so that no room of a generator is named here.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from common.errors import InputError
from generators.bounded_settings import NAME
from generators.interface import GeneratorBackend

FOLDER = Path(__file__).resolve().parent.parent / "config" / "generator"
AUTO = "auto"  # as a name: the adapter's own


@functools.cache
def built_in_adapters() -> Mapping[str, str]:
    """Name -> adapter of every generator that has a YAML in ``config/generator``.

    Raises:
        InputError: two files give one name to different adapters.
    """
    found: dict[str, str] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        name, adapter = content.get("name", AUTO), content.get("adapter")
        if name == AUTO or adapter is None:
            continue
        if found.setdefault(name, adapter) != adapter:
            problem = f"the name {name} has the adapters {found[name]} and {adapter}"
            raise InputError(problem, where=path, fix="give one of them another name")
    return MappingProxyType(found)


def find_generator(named: str) -> GeneratorBackend:
    """The generator of this name or adapter.

    Args:
        named: a name out of ``built_in_adapters``, or ``module:Class``.

    Raises:
        InputError: there is no such name, its adapter cannot be imported, or it lacks what a generator needs.
    """
    if ":" in named:
        return _load(named)
    built_in = built_in_adapters()
    if named not in built_in:
        fix = f"use one of {sorted(built_in)}, or name your own by generator=external generator.adapter=module:Class"
        raise InputError(f"no generator is called {named!r}", where="generator.name", fix=fix)
    return _load(built_in[named])


@functools.cache
def _load(adapter: str) -> GeneratorBackend:
    if adapter not in built_in_adapters().values():
        _make_working_directory_importable()
    module, _, name = adapter.partition(":")
    try:
        found: GeneratorBackend = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        fix = (
            "write module:Class, of a class that takes no arguments, in a module that can be imported from the working "
            "directory or the environment"
        )
        raise InputError(f"{adapter} cannot be loaded ({error})", where="generator.adapter", fix=fix) from error
    parts = {*vars(GeneratorBackend), *GeneratorBackend.__annotations__}
    lacking = sorted(part for part in parts if not part.startswith("_") and not hasattr(found, part))
    if lacking or not NAME.fullmatch(found.name):
        problem = f"it lacks {', '.join(lacking)}" if lacking else f"its name {found.name!r} is no {NAME.pattern}"
        fix = "derive it from generators.interface.GeneratorBackend and state its name"
        raise InputError(f"{adapter} is no generator: {problem}", where="generator.adapter", fix=fix)
    return found


def _make_working_directory_importable() -> None:
    """For this process and those that it starts: a training's own, and Ray's workers. Installed modules come first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*known, here]))
