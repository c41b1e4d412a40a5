"""One stage, in whatever process it landed: make the folder ready, call the function, write the manifest."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from common.errors import InputError
from common.files import write_json
from common.progress import Progress
from common.settings import from_dict
from engine.graph import Stage
from engine.store import StageKey, Store
from engine.workers import InlineWorkers, Workers, WorkerSpec

T = TypeVar("T")
MakeWorkers = Callable[[Mapping[str, WorkerSpec]], Workers]
"""From the sites' specs to their live workers, wherever stages run."""
log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.5
VERSIONS = ("torch", "nnunetv2", "numpy", "ray")


@dataclass(frozen=True)
class StageContext:
    """What a stage function gets: folders to read, one folder to write, settings, a seed and a device."""

    stage: Stage
    out: Path
    inputs: Mapping[str, Path]  # role -> the folder of the stage that wrote it
    device: str
    progress: Progress
    workers: MakeWorkers = InlineWorkers
    embeddings: Path | None = None  # features of the site's images, shared by its stages; no result, never sent

    @property
    def seed(self) -> int:
        """The stage's own seed, derived from experiment, fold, site and stage."""
        return self.stage.seed

    def settings(self, cls: type[T], key: str) -> T:
        """The settings under ``key`` as dataclass ``cls``."""
        return from_dict(cls, self.stage.settings[key], key)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: no error, or its text with the place of the log."""

    stage_id: str
    error: str | None = None
    log: str = ""
    seconds: float = 0.0


def execute_stage(
    stage: Stage,
    run: Path,
    key: StageKey,
    node: str,
    make_workers: MakeWorkers = InlineWorkers,
    *,
    resumes: bool = False,
) -> Outcome:
    """Run one stage to its manifest. Never raises for a failing stage: the outcome says why it failed."""
    store = Store(run)
    started = time.monotonic()
    log_path = store.log_path(stage)
    try:
        folder = store.begin(stage, key, resumes=resumes)
        with logging_to(log_path):
            inputs = {role: store.folder(source) for role, source in stage.inputs.items()}
            device, progress = "cuda" if stage.resources.gpus else "cpu", _progress_writer(store.progress_path(stage))
            context = StageContext(stage, folder, inputs, device, progress, make_workers, store.embeddings(stage))
            set_threads(max(1, int(stage.worker_resources.cpus)))
            resolve_name(stage.function)(context)
        store.commit(stage, key, _run_info(device, started, node))
    except Exception as error:
        with log_path.open("a", encoding="utf-8") as stream:
            traceback.print_exc(file=stream)
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return Outcome(stage.id, text, str(log_path), time.monotonic() - started)
    return Outcome(stage.id, None, str(log_path), time.monotonic() - started)


def set_threads(n_threads: int) -> None:
    """One torch thread per CPU asked for: two stages with two threads each on two cores are up to 10x slower."""
    import torch

    torch.set_num_threads(n_threads)


def _run_info(device: str, started: float, node: str) -> dict[str, Any]:
    return {
        "seconds": round(time.monotonic() - started, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "host": socket.gethostname(),
        "node": node,
        "pid": os.getpid(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send prints and log records of the block to ``path``; a later attempt is appended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    before = root.level
    with path.open("a", encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        quieted = [
            other for other in root.handlers if getattr(other, "stream", None) in (sys.__stdout__, sys.__stderr__)
        ]
        for other in quieted:
            root.removeHandler(other)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(before)
            for other in quieted:
                root.addHandler(other)


def _progress_writer(path: Path) -> Progress:
    """A progress that leaves ``{done, total, unit}`` in a file, at most twice a second."""
    last = 0.0

    def report(done: float, total: float, unit: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_INTERVAL_S or done >= total:
            last = time.monotonic()
            write_json(path, {"done": done, "total": total, "unit": unit})

    return report
