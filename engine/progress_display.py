"""One progress display for a whole run: running stages with units, the run with its time left."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 20.0  # where there is no terminal: one line this often


class ProgressDisplay:
    """Bars on a terminal, a line now and then elsewhere; reads what running stages leave in their progress files."""

    def __init__(self, costs: Mapping[str, float], n_done: int) -> None:
        self._costs = dict(costs)  # of what is still to do
        self._total = sum(self._costs.values())
        self._finished = 0.0
        self._n_stages, self._n_finished = len(self._costs) + n_done, n_done
        self._running: dict[str, Path] = {}
        self._inherited: dict[str, float] = {}  # cost that an earlier, stopped run had done of a resumed stage
        self._started = self._last_line = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not self._is_terminal,
        )
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        self._whole = self._bars.add_task("run", total=self._total or 1.0, amount="")
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def started(self, stage_id: str, progress_file: Path) -> None:
        """A stage began; its progress will stand in ``progress_file``."""
        self._running[stage_id] = progress_file
        self._rows[stage_id] = self._bars.add_task(f"  {stage_id}", total=1.0, amount="")
        if not self._is_terminal:
            log.info("start  %s", stage_id)

    def ended(self, stage_id: str, seconds: float, error: str | None) -> None:
        """A stage ended, well or not."""
        self._running.pop(stage_id, None)
        if stage_id in self._rows:
            self._bars.remove_task(self._rows.pop(stage_id))
        self._finished += self._costs.get(stage_id, 0.0)
        self._n_finished += error is None
        if error is not None:
            log.error("FAILED %s after %s: %s", stage_id, _duration(seconds), error)
        elif self._is_terminal:
            self._bars.console.print(f"done   {stage_id}  {_duration(seconds)}", highlight=False)
        else:
            log.info("done   %s  %s", stage_id, _duration(seconds))
        self.refresh()

    def refresh(self) -> None:
        """Read the progress files and draw."""
        partial, texts = 0.0, []
        for stage_id, path in self._running.items():
            fraction, amount = _read(path)
            done = fraction * self._costs.get(stage_id, 0.0)
            self._inherited.setdefault(stage_id, done)
            partial += done
            self._bars.update(self._rows[stage_id], completed=fraction, amount=amount)
            texts.append(f"{stage_id} {amount}".strip())
        left = self._time_left(self._finished + partial)
        summary = f"{self._n_finished}/{self._n_stages} stages, {left}"
        self._bars.update(self._whole, completed=self._finished + partial, amount=summary)
        if not self._is_terminal and time.monotonic() - self._last_line > LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            log.info("%s; running: %s", summary, "; ".join(texts))

    def _time_left(self, finished: float) -> str:
        elapsed = time.monotonic() - self._started
        achieved = finished - sum(self._inherited.values())
        if achieved <= 0 or elapsed < 5:
            return "time left unknown yet"
        return f"about {_duration(elapsed * (self._total - finished) / achieved)} left"


def _read(path: Path) -> tuple[float, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0.0, ""
    done, total = float(content["done"]), float(content["total"])
    return done / total if total else 0.0, f"{done:g}/{total:g} {content['unit']}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
