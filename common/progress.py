"""How long work says how far it is: one callable, so that no library here draws bars of its own."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 10.0  # where there is no terminal: one line this often

Progress = Callable[[float, float, str], None]
"""``progress(done, total, unit)``, for example ``progress(1.2, 40, "kimg")``."""


def silent(done: float, total: float, unit: str) -> None:
    """A progress that shows nothing."""


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A bar with the time left on a terminal, a log line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _logged_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        rows = {}

        def show(done: float, total: float, unit: str) -> None:
            if unit not in rows:
                rows[unit] = bars.add_task(f"{unit}s" if " " not in unit else unit.replace(" ", "s ", 1))
            bars.update(rows[unit], completed=done, total=total)

        yield show


def _logged_progress() -> Progress:
    started: dict[str, float] = {}
    last = time.monotonic()

    def show(done: float, total: float, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        began = started.setdefault(unit, now)
        if done == total or now - last > LINE_INTERVAL_S:
            left_s = (now - began) * (total - done) / max(done, 1)
            log.info("%s: %d of %d%s", unit, done, total, f", {left_s:.0f} s left" if done < total else "")
            last = now

    return show
