"""How far a command of this room is, on one line of a terminal; elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from common.progress import Progress

INTERVAL_S = 10.0  # between lines where there is no terminal
BAR_WIDTH = 24


@contextmanager
def progress_line(stream: TextIO) -> Iterator[Progress]:
    """A bar with rate and time left: ``[######      ] 24 of 64 images, 31.2 images/s, 1 s left``."""
    started = last = time.monotonic()
    on_terminal = stream.isatty()

    def show(done: float, total: float, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if not on_terminal and done < total and now - last < INTERVAL_S:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        filled = int(BAR_WIDTH * done / total)
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        bar = f"[{'#' * filled}{' ' * (BAR_WIDTH - filled)}] " if on_terminal else ""
        line = f"{bar}{done:g} of {total:g} {unit}, {rate:.1f} {unit}/s{left}"
        stream.write(f"\r{line}\033[K" if on_terminal else f"{line}\n")
        stream.flush()

    yield show
    if on_terminal:
        stream.write("\n")
