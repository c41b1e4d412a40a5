"""Private nnU-Net roots: its three environment variables, set for one block of work and restored after it (D20)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

# Read by nnU-Net at import: one planner process; its own pools are replaced below.
os.environ.setdefault("nnUNet_def_n_proc", "1")


@contextmanager
def nnunet_roots(raw: Path, preprocessed: Path, results: Path, *, augmentation_processes: int = 1) -> Iterator[None]:
    """Point nnU-Net at these folders while the block runs. Not thread-safe: one stage per process."""
    values = {
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(preprocessed),
        "nnUNet_results": str(results),
        "nnUNet_n_proc_DA": str(augmentation_processes),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def threads_for_pools() -> Iterator[None]:
    """Give nnU-Net's planner thread pools where it asks for processes.

    A spawned pool re-imports torch in every worker (5-7 s each), and a forked one can hang for ever in a process that
    has threads, as every Ray worker has. What they do here is read small files.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.utilities import utils

    processes, pool = fingerprint_extractor.multiprocessing, utils.Pool
    fingerprint_extractor.multiprocessing = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))
    utils.Pool = ThreadPool
    try:
        yield
    finally:
        fingerprint_extractor.multiprocessing, utils.Pool = processes, pool
