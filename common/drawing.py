"""Drawing is not computing: a mark for functions whose output people look at and no stage reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def drawing(function: F) -> F:
    """Mark a function that only draws: what makes a stage done leaves it out (``engine.dependencies``)."""
    return function
