"""A whole training, from images or volumes to a diffusion model: exact resume, and nothing half-written."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from common.checkpoints import load_tensors
from common.errors import InputError
from common.progress import Progress, silent
from diffusion.autoencoder_training import RESULT as AUTOENCODER
from diffusion.autoencoder_training import AutoencoderTraining
from diffusion.card import Card
from diffusion.data import Data
from diffusion.denoiser_training import DenoiserTraining
from diffusion.settings import DiffusionSettings
from training.batch_shard import BatchShard
from training.distributed import run_distributed
from training.memory import keep_freed_memory
from training.monitor import Monitor
from training.pictures import SHEETS, remove_sheets_after
from training.snapshots import remove_candidates
from training.training_state import RESULT, check_same_run, remove_half_written

log = logging.getLogger(__name__)

AUTOENCODER_FOLDER, DENOISER = "autoencoder", "denoiser"


def train(
    data: Data,
    out: Path,
    settings: DiffusionSettings,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
    monitor: Monitor | None = None,
    n_processes: int = 1,
) -> None:
    """Train on ``data`` and write the model with averaged weights.

    Writes ``generator.safetensors``, ``curves.jsonl``, ``sample_sheet.png`` (volumes: ``.gif``), the card and, for
    latents, the same of the autoencoder under ``autoencoder/``; while it runs also ``training.safetensors``, from which
    the same call resumes: N + N steps equal 2 N bit for bit on a CPU. With several processes, one a GPU on ``cuda``,
    each computes its share of every batch; a training may be resumed with another number of them.

    Raises:
        InputError: a batch that so many processes cannot share, or a folder of another training.
        RuntimeError: the training diverged, or another process failed.
    """
    check_processes(settings, n_processes)
    keep_freed_memory()
    remove_half_written(out, out / AUTOENCODER_FOLDER, out / SHEETS, out / AUTOENCODER_FOLDER / SHEETS)
    if (out / RESULT).is_file():
        check_same_run(out / RESULT, load_tensors(out / RESULT)[1], settings, seed)
        (out / DenoiserTraining.checkpoint).unlink(missing_ok=True)
        remove_candidates(out)
        return
    card = Card(out, data, settings, seed, device)
    has_autoencoder = settings.autoencoder is None or (out / AUTOENCODER_FOLDER / AUTOENCODER).is_file()
    for name in (DENOISER,) if has_autoencoder else (AUTOENCODER_FOLDER, DENOISER):

        def lead(shard: BatchShard, own_device: str, name: str = name) -> None:
            run, folder = _begin(shard, own_device, name, out, data, settings, seed, monitor)
            _lead(run, folder, settings, progress, card)

        run_distributed(n_processes, out, device, lead, _follow, name, out, data, settings, seed)


def check_processes(settings: DiffusionSettings, n_processes: int) -> None:
    """InputError unless every process gets as many images of every batch."""
    sizes = _batch_sizes(settings)
    if any(size % n_processes for size in sizes):
        problem = f"batches of {sizes} images cannot be shared by {n_processes} processes"
        raise InputError(problem, where="n_processes", fix="use a number that divides the batches")


def n_processes_for(settings: DiffusionSettings, n_devices: int) -> int:
    """The largest number of processes up to ``n_devices`` that can share the batches."""
    return max((n for n in range(1, n_devices + 1) if not any(size % n for size in _batch_sizes(settings))), default=1)


def _batch_sizes(settings: DiffusionSettings) -> list[int]:
    return [settings.batch_size] + ([] if settings.autoencoder is None else [settings.autoencoder.batch_size])


def _begin(
    shard: BatchShard,
    device: str,
    name: str,
    out: Path,
    data: Data,
    settings: DiffusionSettings,
    seed: int,
    monitor: Monitor | None = None,
) -> tuple[AutoencoderTraining | DenoiserTraining, Path]:
    """One of the two trainings, gone on from its checkpoint if there is one, and its folder."""
    folder = out / AUTOENCODER_FOLDER
    run: AutoencoderTraining | DenoiserTraining
    if name == AUTOENCODER_FOLDER:
        run = AutoencoderTraining(data, settings, seed, torch.device(device), shard)
    else:
        autoencoder = None if settings.autoencoder is None else folder
        run = DenoiserTraining(data, settings, seed, torch.device(device), shard, autoencoder, monitor)
        folder = out
    run.resume(folder)
    shard.barrier()  # every process has read the checkpoint
    return run, folder


def _lead(
    run: AutoencoderTraining | DenoiserTraining,
    folder: Path,
    settings: DiffusionSettings,
    progress: Progress,
    card: Card,
) -> None:
    """The training on the process that writes."""
    kimg_in_all = kimg_total(settings)
    kimg_before = 0.0  # shown before this training began: to the autoencoder
    if isinstance(run, DenoiserTraining):
        kimg_before = round(kimg_in_all - run.n_steps * run.batch_size / 1000, 6)
    remove_sheets_after(folder, run.kimg)
    while run.step < run.n_steps:
        run.advance()
        if run.step % run.steps_per_epoch == 0:
            started_s = time.monotonic()
            run.end_epoch(folder)
            card.write(run.rows, kimg_before + run.kimg)
            run.shard.barrier()
            log.debug("epoch %d of %d ended in %.1f s", run.epoch, run.n_epochs, time.monotonic() - started_s)
        progress(kimg_before + run.kimg, kimg_in_all, "kimg")
    chosen = run.finish(folder)
    if chosen is not None:
        card.write(run.rows, kimg_in_all, chosen)


def _follow(shard: BatchShard, device: str, *arguments: Any) -> None:
    """The training on the other processes: the steps, and a wait wherever the leader writes."""
    keep_freed_memory()
    run, _ = _begin(shard, device, *arguments)
    while run.step < run.n_steps:
        run.advance()
        if run.step % run.steps_per_epoch == 0:
            shard.barrier()


def kimg_total(settings: DiffusionSettings) -> float:
    """Thousand images that both trainings see."""
    own = settings.autoencoder
    steps = settings.n_steps * settings.batch_size
    steps += 0 if own is None else own.n_epochs * own.steps_per_epoch * own.batch_size
    return round(steps / 1000, 6)
