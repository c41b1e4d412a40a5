"""Frozen dataclasses from plain dictionaries and back: unknown keys and wrong types are refused."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from common.errors import InputError

T = TypeVar("T")
Check = tuple[str, object, bool, str]
"""A setting's name, its value, whether it is allowed, and what is."""


def refuse_wrong(checks: Iterable[Check], where: str) -> None:
    """InputError for the first setting under ``where`` whose value is not allowed."""
    for name, value, is_allowed, expected in checks:
        if not is_allowed:
            raise InputError(f"{value!r} is not allowed", where=f"{where}.{name}", fix=f"use {expected}")


def to_dict(settings: Any) -> dict[str, Any]:
    """A dataclass as the dictionaries and lists that its JSON is read back to."""
    return dict(json.loads(json.dumps(dataclasses.asdict(settings))))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass ``cls`` (nested dataclasses, tuples, dictionaries and unions included) from ``values``.

    Args:
        where: dotted path of ``values``, for messages.

    Raises:
        TypeError: an unknown key (with the nearest known one), a missing field or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in sorted(set(values) - set(fields)):
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"; did you mean {_join(where, near[0])!r}?" if near else f"; known keys: {', '.join(sorted(fields))}"
        raise TypeError(f"unknown key {_join(where, name)!r}{hint}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise TypeError(f"key {_join(where, name)!r} is missing")
    return cls(**{name: _coerce(hints[name], value, _join(where, name)) for name, value in values.items()})


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(hint, value, where)
    if origin is tuple:
        return _coerce_tuple(hint, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError(f"{where} takes a mapping, not {value!r}")
        key_hint, item_hint = get_args(hint)
        return {_coerce_key(key_hint, key): _coerce(item_hint, item, f"{where}[{key}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise TypeError(f"{where} takes {_name(hint)}, not {value!r}")
    return value


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _coerce_key(hint: Any, key: Any) -> Any:
    return hint(key) if hint in (int, str) else key  # JSON turns integer keys into text


def _coerce_union(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    others = [option for option in options if option is not type(None)]
    if len(others) == 1 and dataclasses.is_dataclass(others[0]) and isinstance(value, Mapping):
        return _coerce(others[0], value, where)  # whose message names the wrong key
    for option in options:
        try:
            return _coerce(option, value, where)
        except TypeError:
            continue
    raise TypeError(f"{where} takes {_name(hint)}, not {value!r}")


def _coerce_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError(f"{where} takes a list, not {value!r}")
    items = get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_coerce(items[0], item, where) for item in value)
    if len(items) != len(value):
        raise TypeError(f"{where} takes {len(items)} values, not {value!r}")
    return tuple(_coerce(item_hint, item, where) for item_hint, item in zip(items, value, strict=True))
