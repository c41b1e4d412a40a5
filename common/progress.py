"""How long work says how far it is: one callable, so that no library here draws bars of its own."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, float, str], None]
"""``progress(done, total, unit)``, for example ``progress(1.2, 40, "kimg")``."""


def silent(done: float, total: float, unit: str) -> None:
    """A progress that shows nothing."""
