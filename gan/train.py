"""Training from images to a generator, alone or as one of several processes: exact resume, and nothing half-written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common.checkpoints import load_tensors
from common.errors import InputError
from common.progress import Progress, silent
from gan.batches import Batches
from gan.record import Record
from gan.settings import GanSettings
from gan.training import CHECKPOINT, Training, remove_state
from training.alarms import TrainingFailedError
from training.batch_shard import BatchShard
from training.distributed import run_distributed
from training.memory import keep_freed_memory
from training.monitor import Monitor
from training.pictures import SHEETS
from training.training_state import RESULT, check_same_run, remove_half_written


def train(
    images: np.ndarray,
    out: Path,
    settings: GanSettings,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
    monitor: Monitor | None = None,
    n_processes: int = 1,
    patients: Sequence[str] | None = None,
) -> None:
    """Train on ``images`` (n, channels, height, width), uint8 or uint16, and write the averaged generator.

    Writes ``generator.safetensors`` (EMA weights of the chosen snapshot, settings, the choice), ``curves.jsonl`` (the
    monitor's scores have lines of their own), pictures (``gan.pictures``), the card and events of ``gan.record`` and,
    after a failure, ``alarms.jsonl``; while it runs also ``training.safetensors``, from which the same call resumes:
    N + N steps equal 2 N bit for bit on a CPU. With several processes, one a GPU on ``cuda``, each computes its share
    of every step, and this one does all else; a training may be resumed with another number of them. ``patients`` are
    whose each image is: differential privacy counts by them, nothing else does.

    Raises:
        InputError: images that fit neither the plan nor a training, or a batch that so many processes cannot share.
        RuntimeError: the training diverged or collapsed, every time it was tried, or another process failed.
    """
    batches = Batches(images, settings, seed)
    check_processes(settings, n_processes)
    keep_freed_memory()
    remove_half_written(out, out / SHEETS)
    if (out / RESULT).is_file():
        check_same_run(out / RESULT, load_tensors(out / RESULT)[1], settings, seed)
        remove_state(out)
        return

    def lead(shard: BatchShard, own_device: str) -> None:
        run = Training(batches, settings, seed, torch.device(own_device), monitor, shard, patients)
        record = Record(out, images, settings, seed, run.train_step.device, run.population)
        _lead(run, record, out, progress)

    run_distributed(n_processes, out, device, lead, _follow, images, out, settings, seed)


def check_processes(settings: GanSettings, n_processes: int) -> None:
    """InputError unless every process gets as many images, and whole minibatch-deviation groups of them.

    Under differential privacy there is one process: nobody knows in advance how many images a step has.
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
    """The largest number of processes up to ``n_devices`` that ``check_processes`` accepts; it accepts one always."""
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
    n_own = batch_size // n_processes
    return f"{n_own} images a process are no whole groups of {group}" if n_own % min(group, batch_size) else None


def _lead(run: Training, record: Record, out: Path, progress: Progress) -> None:
    """The training in the process that writes."""
    run.resume(out)
    run.shard.barrier()  # the others have read the checkpoint
    record.begin(run.rows, run.kimg_at(run.step))
    n_steps = run.settings.n_steps
    while run.step < n_steps:
        try:
            run.advance()
            if run.is_snapshot_due():
                run.snapshot(out)
                record.snapshot(run.rows, run.kimg_at(run.step))
                run.shard.barrier()
        except TrainingFailedError as failure:
            run.fall_back(out, failure)
            run.shard.barrier(True)
        progress(run.kimg_at(run.step), run.kimg_at(n_steps), "kimg")
    chosen = run.choose(out)
    record.snapshot(run.rows, run.kimg_at(run.step), chosen)
    record.close()
    run.finish(out, chosen)


def _follow(shard: BatchShard, device: str, images: np.ndarray, out: Path, settings: GanSettings, seed: int) -> None:
    """The training in the others: the steps, and after a failure the checkpoint to which the leader went back."""
    keep_freed_memory()
    run = Training(Batches(images, settings, seed), settings, seed, torch.device(device), shard=shard)
    if (out / CHECKPOINT).is_file():
        run.load(out / CHECKPOINT)
    shard.barrier()
    while run.step < settings.n_steps:
        try:
            run.advance()
            went_back = run.is_snapshot_due() and shard.barrier()
        except TrainingFailedError:  # of means over the processes: all see it
            went_back = shard.barrier()
        if went_back:
            run.load(out / CHECKPOINT)
