"""``key=value`` arguments as a settings dataclass: the text is read as the type its field has."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from common.errors import InputError
from common.settings import from_dict

T = TypeVar("T")
U = TypeVar("U")

WHERE = "command line"

_TRUTH = {"true": True, "false": False}


def option(default: Any, help_text: str) -> Any:
    """A field of a command's options: its default, and its line in the help."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


def split_arguments(arguments: Sequence[str], where: str) -> dict[str, str]:
    """``["a=1", "b=x"]`` as ``{"a": "1", "b": "x"}``.

    Raises:
        InputError: an argument without ``=``.
    """
    values = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise InputError(f"the argument {argument!r} has no '='", where=where, fix="write it as key=value")
        values[key] = value
    return values


def settings_from_text(cls: type[T], texts: Mapping[str, str], where: str) -> T:
    """Build the dataclass ``cls``; lists are ``a,b``, maps ``lungs:1,heart:2``, nested fields ``group.key``.

    Raises:
        InputError: an unknown key (with the nearest known one), or text that is not of the field's type.
    """
    values: dict[str, Any] = {}
    try:
        for key, text in texts.items():
            *groups, name = key.split(".")
            owner, target = cls, values
            for group in groups:
                owner, target = _hints(owner).get(group, object), target.setdefault(group, {})
            target[name] = _read(_hints(owner).get(name, str), text)
        return from_dict(cls, values)
    except (TypeError, ValueError) as error:
        known = ", ".join(_hints(cls))
        raise InputError(str(error), where=where, fix=f"the keys are {known or 'none'}") from error


def read_settings(arguments: Sequence[str], options: type[T], source: type[U]) -> tuple[T, U]:
    """``key=value`` arguments of a command: the keys of ``options``, a dataclass, and all others for ``source``.

    Raises:
        InputError: see ``split_arguments`` and ``settings_from_text``.
    """
    texts = split_arguments(arguments, WHERE)
    own = {key: texts.pop(key) for key in list(texts) if key in _hints(options)}
    return settings_from_text(options, own, WHERE), settings_from_text(source, texts, WHERE)


def add_settings(parser: argparse.ArgumentParser, options: type, source: type) -> None:
    """The arguments that ``read_settings`` reads; the help lists all keys."""
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the keys below")
    lines = []
    for title, cls in (("options", options), ("keys of the source (docs/data.md)", source)):
        lines += [f"{title} and their default values:", *(f"  {line}" for line in describe_fields(cls)), ""]
    parser.epilog = "\n".join(lines)


def describe_fields(cls: type, prefix: str = "") -> list[str]:
    """One line a field: ``key=default  what it is`` (from the field's metadata ``help``)."""
    lines = []
    for item in fields(cls):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if is_dataclass(default):
            lines += describe_fields(type(default), f"{prefix}{item.name}.")
            continue
        text = "required" if default is MISSING else _write(default)
        lines.append(f"{prefix}{item.name}={text}  {item.metadata.get('help', '')}".rstrip())
    return lines


def as_text(settings: Any) -> dict[str, str]:
    """The fields of a flat dataclass as they are written on the command line."""
    return {item.name: _write(getattr(settings, item.name)) for item in fields(settings)}


def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls) if is_dataclass(cls) else {}


def _read(hint: Any, text: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_union(inner, text)
    if origin is tuple:
        return [_read(inner[0], part) for part in text.split(",") if part]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = (part.partition(":") for part in text.split(",") if part)
        return {_read(inner[0], key): _read(inner[1], value) for key, _, value in pairs}
    if hint is bool:
        return _TRUTH.get(text.lower(), text)
    return hint(text) if hint in (int, float) else text


def _read_union(options: Sequence[Any], text: str) -> Any:
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    for option in options:
        with suppress(ValueError):
            return _read(option, text)
    return text  # which is refused with the field's name


def _write(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
