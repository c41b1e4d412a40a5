"""A whole training, from images or volumes to a diffusion model: exact resume, and nothing half-written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import torch

from common.checkpoints import load_tensors
from common.errors import InputError
from common.progress import Progress, silent
from diffusion.autoencoder_training import RESULT as AUTOENCODER
from diffusion.autoencoder_training import AutoencoderTraining
from diffusion.card import Card
from diffusion.data import Data
from diffusion.denoiser_training import DenoiserTraining
from diffusion.model import RESULT
from diffusion.settings import DiffusionSettings
from diffusion.training import Training
from training.batch_shard import BatchShard
from training.distributed import run_distributed
from training.memory import keep_freed_memory
from training.monitor import Monitor
from training.pictures import SHEETS
from training.snapshots import remove_candidates
from training.training_state import check_same_run

log = logging.getLogger(__name__)

AUTOENCODER_FOLDER = "autoencoder"
RENDEZVOUS = "rendezvous"  # of the processes, while there are several


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
    _remove_half_written(out)
    if (out / RESULT).is_file():
        check_same_run(out / RESULT, load_tensors(out / RESULT)[1], settings, seed)
        (out / DenoiserTraining.checkpoint).unlink(missing_ok=True)
        remove_candidates(out)
        return
    card = Card(out, data, settings, seed, device)
    arguments = (data, settings, seed)
    if settings.autoencoder is not None and not (out / AUTOENCODER_FOLDER / AUTOENCODER).is_file():
        _run(_begin_autoencoder, arguments, out, device, progress, card, n_processes, None)
    _run(_begin_denoiser, arguments, out, device, progress, card, n_processes, monitor)


def check_processes(settings: DiffusionSettings, n_processes: int) -> None:
    """InputError unless every process gets as many images of every batch."""
    sizes = [settings.batch_size] + ([] if settings.autoencoder is None else [settings.autoencoder.batch_size])
    if any(size % n_processes for size in sizes):
        problem = f"batches of {sizes} images cannot be shared by {n_processes} processes"
        raise InputError(problem, where="n_processes", fix="use a number that divides the batches")


def n_processes_for(settings: DiffusionSettings, n_devices: int) -> int:
    """The largest number of processes up to ``n_devices`` that the batches can be shared by."""
    sizes = [settings.batch_size] + ([] if settings.autoencoder is None else [settings.autoencoder.batch_size])
    return max((n for n in range(1, n_devices + 1) if not any(size % n for size in sizes)), default=1)


def _begin_autoencoder(
    out: Path,
    device: str,
    shard: BatchShard,
    monitor: Monitor | None,
    data: Data,
    settings: DiffusionSettings,
    seed: int,
) -> tuple[Training, Path]:
    return AutoencoderTraining(data, settings, seed, torch.device(device), shard), out / AUTOENCODER_FOLDER


def _begin_denoiser(
    out: Path,
    device: str,
    shard: BatchShard,
    monitor: Monitor | None,
    data: Data,
    settings: DiffusionSettings,
    seed: int,
) -> tuple[Training, Path]:
    folder = None if settings.autoencoder is None else out / AUTOENCODER_FOLDER
    return DenoiserTraining(data, settings, seed, torch.device(device), shard, folder, monitor), out


def _run(
    begin: Callable[..., tuple[Training, Path]],
    arguments: tuple[Data, DiffusionSettings, int],
    out: Path,
    device: str,
    progress: Progress,
    card: Card,
    n_processes: int,
    monitor: Monitor | None,
) -> None:
    """One of the two trainings, on this process as the one that writes, and on the others."""

    def lead(shard: BatchShard, own_device: str) -> None:
        run, folder = begin(out, own_device, shard, monitor, *arguments)
        _lead(run, folder, arguments[1], progress, card)

    # a name of its own: what followers of a killed training still do to theirs must not be done to this one
    rendezvous = out / f".{uuid4().hex}.{RENDEZVOUS}"
    run_distributed(n_processes, rendezvous, device, lead, _follow, begin, out, arguments)


def _lead(run: Training, folder: Path, settings: DiffusionSettings, progress: Progress, card: Card) -> None:
    kimg_before, kimg_in_all = _kimg_before(run, settings), kimg_total(settings)
    run.resume(folder)
    run.shard.barrier()  # the others have read the checkpoint
    _remove_pictures_ahead(folder, run.kimg)
    while run.step < run.n_steps:
        run.advance()
        if run.step % run.steps_per_epoch == 0:
            started_s = time.monotonic()
            run.end_epoch(folder)
            card.write(run.rows, kimg_before + run.kimg)
            run.shard.barrier()
            log.debug("epoch %d of %d, %.1f s beside it", run.epoch, run.n_epochs, time.monotonic() - started_s)
        progress(kimg_before + run.kimg, kimg_in_all, "kimg")
    if isinstance(run, DenoiserTraining):
        card.write(run.rows, kimg_in_all, run.finish(folder))
    elif isinstance(run, AutoencoderTraining):
        run.finish(folder)


def _follow(
    shard: BatchShard,
    device: str,
    begin: Callable[..., tuple[Training, Path]],
    out: Path,
    arguments: tuple[Data, DiffusionSettings, int],
) -> None:
    """The training as the others see it: the steps, and a wait wherever the leader writes."""
    keep_freed_memory()
    run, folder = begin(out, device, shard, None, *arguments)
    run.resume(folder)
    shard.barrier()
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


def _kimg_before(run: Training, settings: DiffusionSettings) -> float:
    """Shown before ``run`` began: the autoencoder's share."""
    if isinstance(run, AutoencoderTraining):
        return 0.0
    return round(kimg_total(settings) - run.n_steps * run.batch_size / 1000, 6)


def _remove_pictures_ahead(folder: Path, kimg: float) -> None:
    """Sheets of a future that a resumed training will draw again."""
    for sheet in (folder / SHEETS).glob("kimg_*"):
        if float(sheet.name.removeprefix("kimg_").rsplit(".", 1)[0]) > kimg:
            sheet.unlink()


def _remove_half_written(out: Path) -> None:
    """A killed training may leave a temporary sibling of the file it was writing (``common.files.atomic_path``)."""
    for folder in (out, out / AUTOENCODER_FOLDER, out / SHEETS, out / AUTOENCODER_FOLDER / SHEETS):
        for leftover in folder.glob(".*.*"):
            if leftover.is_file():
                leftover.unlink()
