"""On how many processes a training may be computed: ``training.batch_shard`` says who computes what."""

from __future__ import annotations

from common.errors import InputError
from gan.settings import GanSettings


def check_shares(settings: GanSettings, n_processes: int) -> None:
    """InputError unless every process gets as many images, and whole minibatch-deviation groups of them.

    Under differential privacy there is one process: how many images a step has is then known to none before.
    """
    if settings.config.privacy is not None and n_processes > 1:
        problem = f"{n_processes} processes cannot share the images of a step under differential privacy"
        raise InputError(problem, where="n_processes", fix="use 1, or generator.settings.privacy=null")
    refusal = _refusal(settings, n_processes)
    if refusal is not None:
        half = settings.config.batch_size // 2
        fix = f"use a number of processes that divides {half}, or a larger generator.settings.batch_size"
        raise InputError(refusal, where="n_processes", fix=fix)


def n_processes_for(settings: GanSettings, n_devices: int) -> int:
    """The largest number of processes up to ``n_devices`` that ``check_shares`` accepts; one always is."""
    if settings.config.privacy is not None:
        return 1
    return max((n for n in range(2, n_devices + 1) if _refusal(settings, n) is None), default=1)


def _refusal(settings: GanSettings, n_processes: int) -> str | None:
    """Why the batch cannot be shared by so many."""
    batch_size, group = settings.config.batch_size, settings.config.minibatch_std_group
    if n_processes == 1:
        return None
    if batch_size % n_processes or (batch_size // 2) % n_processes:
        return f"{batch_size} images, and half of them, do not divide by {n_processes}"
    share = batch_size // n_processes
    return f"{share} images a process are no whole groups of {group}" if share % min(group, batch_size) else None
