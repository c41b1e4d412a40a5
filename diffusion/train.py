"""Training from images or volumes to a diffusion model: exact resume, and nothing half-written.

    python -m diffusion.train 4 --dimensions 3D --model ldm --fold 0

trains on nnU-Net's preprocessed cases of dataset 4 what ``python -m diffusion.plan 4`` planned; the same command
resumes. Exit code 0, 1 on bad input, another one on any other failure.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from common.checkpoints import load_tensors
from common.errors import InputError
from common.progress import Progress, shown_progress, silent
from diffusion.autoencoder_training import RESULT as AUTOENCODER
from diffusion.autoencoder_training import AutoencoderTraining
from diffusion.card import Card
from diffusion.data import Data
from diffusion.denoiser_training import DenoiserTraining
from diffusion.model import RESULT
from diffusion.settings import DiffusionSettings
from training.batch_shard import BatchShard
from training.distributed import run_distributed
from training.memory import keep_freed_memory
from training.monitor import Monitor
from training.pictures import SHEETS
from training.snapshots import remove_candidates
from training.training_state import check_same_run

log = logging.getLogger(__name__)

AUTOENCODER_FOLDER, DENOISER = "autoencoder", "denoiser"
RENDEZVOUS = "rendezvous"  # of the processes, while there are several
RESULTS_VARIABLE = "nnUNet_results"


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
    has_autoencoder = settings.autoencoder is None or (out / AUTOENCODER_FOLDER / AUTOENCODER).is_file()
    for name in (DENOISER,) if has_autoencoder else (AUTOENCODER_FOLDER, DENOISER):

        def lead(shard: BatchShard, own_device: str, name: str = name) -> None:
            run, folder = _begin(shard, own_device, name, out, data, settings, seed, monitor)
            _lead(run, folder, settings, progress, card)

        # the file has a name of its own: followers of a killed training may still use theirs
        rendezvous = out / f".{uuid4().hex}.{RENDEZVOUS}"
        run_distributed(n_processes, rendezvous, device, lead, _follow, name, out, data, settings, seed)


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
    kimg_total = _kimg_total(settings)
    kimg_before = 0.0  # shown before this training began: to the autoencoder
    if isinstance(run, DenoiserTraining):
        kimg_before = round(kimg_total - run.n_steps * run.batch_size / 1000, 6)
    for sheet in (folder / SHEETS).glob("kimg_*"):  # a resumed training draws later ones again
        if float(sheet.name.removeprefix("kimg_").rsplit(".", 1)[0]) > run.kimg:
            sheet.unlink()
    while run.step < run.n_steps:
        run.advance()
        if run.step % run.steps_per_epoch == 0:
            started_s = time.monotonic()
            run.end_epoch(folder)
            card.write(run.rows, kimg_before + run.kimg)
            run.shard.barrier()
            log.debug("epoch %d of %d ended in %.1f s", run.epoch, run.n_epochs, time.monotonic() - started_s)
        progress(kimg_before + run.kimg, kimg_total, "kimg")
    chosen = run.finish(folder)
    if chosen is not None:
        card.write(run.rows, kimg_total, chosen)


def _follow(shard: BatchShard, device: str, *arguments: Any) -> None:
    """The training on the other processes: the steps, and a wait wherever the leader writes."""
    keep_freed_memory()
    run, _ = _begin(shard, device, *arguments)
    while run.step < run.n_steps:
        run.advance()
        if run.step % run.steps_per_epoch == 0:
            shard.barrier()


def _kimg_total(settings: DiffusionSettings) -> float:
    own = settings.autoencoder
    steps = settings.n_steps * settings.batch_size
    steps += 0 if own is None else own.n_epochs * own.steps_per_epoch * own.batch_size
    return round(steps / 1000, 6)


def _remove_half_written(out: Path) -> None:
    """A killed training may leave a temporary sibling of the file it was writing (``common.files.atomic_path``)."""
    for folder in (out, out / AUTOENCODER_FOLDER, out / SHEETS, out / AUTOENCODER_FOLDER / SHEETS):
        for leftover in folder.glob(".*.*"):
            if leftover.is_file():
                leftover.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    chosen = _parser().parse_args(arguments)
    try:
        out = _train_on_dataset(chosen)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{out / RESULT}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diffusion.train", description="Train a diffusion model.")
    parser.add_argument("dataset", help="id or name of an nnU-Net dataset, or the folder of its preprocessed cases")
    parser.add_argument("--dimensions", choices=("2D", "3D"), required=True)
    parser.add_argument("--model", choices=("ddpm", "ldm"), required=True)
    parser.add_argument("--fold", default="0", help="0 to 4 as nnU-Net's splits_final.json says, or all (default 0)")
    parser.add_argument("--plan", type=Path, default=None, help="default: diffusion_plan.yaml of the dataset")
    parser.add_argument("--out", type=Path, default=None, help="default: a folder for this fold under $nnUNet_results")
    parser.add_argument("--epochs", type=int, default=None, help="of each of the two trainings; default: the plan's")
    parser.add_argument("--steps-per-epoch", type=int, default=None, help="default: the plan's")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--device", default="auto", help="cpu, cuda (all GPUs), cuda:1 ..., or auto (default)")
    return parser


def _train_on_dataset(chosen: argparse.Namespace) -> Path:
    """The training that the command line asks for; returns its folder."""
    from common.plan import plan_from_json
    from diffusion.crops import CropData
    from diffusion.plan import CONFIGURATIONS, PLAN_FILE, read_plan, read_source
    from nnunetv2_mod.nnunet_folder import find_dataset

    dataset = find_dataset(chosen.dataset)
    path = chosen.plan or dataset.preprocessed / PLAN_FILE
    settings = with_epochs(read_plan(path, chosen.dimensions, chosen.model), chosen.epochs, chosen.steps_per_epoch)
    out = chosen.out or _results_folder(dataset.name, chosen.dimensions, chosen.model, chosen.fold)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if chosen.device == "auto" else chosen.device
    fold = chosen.fold if chosen.fold == "all" else int(chosen.fold) if chosen.fold.isdecimal() else chosen.fold
    plans_name, channels = read_source(path)
    dataset = find_dataset(chosen.dataset, plans_name)
    plan = plan_from_json(dataset.plans, CONFIGURATIONS[chosen.dimensions])
    if max(channels) >= plan.n_channels:
        problem, fix = f"channels {channels} of images with {plan.n_channels}", "plan the dataset again"
        raise InputError(problem, where=path, fix=fix)
    data = CropData(dataset, plan, settings, fold, chosen.seed, channels)
    n_processes = n_processes_for(settings, torch.cuda.device_count() if device == "cuda" else 0)
    log.info(
        "%s %s of %s, fold %s, on %d x %s: %s",
        chosen.dimensions,
        chosen.model,
        dataset.name,
        chosen.fold,
        n_processes,
        device,
        out,
    )
    with shown_progress() as progress:
        train(data, out, settings, chosen.seed, device, progress, None, n_processes)
    return out


def _results_folder(dataset: str, dimensions: str, model: str, fold: str) -> Path:
    """One folder for every fold (the original's folds shared one: defect 9)."""
    results = os.environ.get(RESULTS_VARIABLE)
    if not results:
        raise InputError("it is not set", where=f"${RESULTS_VARIABLE}", fix="set it as for nnU-Net, or give --out")
    return Path(results) / dataset / f"diffusion_{dimensions}_{model}" / f"fold_{fold}"


def with_epochs(settings: DiffusionSettings, n_epochs: int | None, steps_per_epoch: int | None) -> DiffusionSettings:
    """The same with other lengths of both trainings; None: as it is.

    Raises:
        InputError: no length.
    """
    for name, value in (("--epochs", n_epochs), ("--steps-per-epoch", steps_per_epoch)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}", where="diffusion.train", fix="use 1 or more")
    epochs, steps = n_epochs or settings.n_epochs, steps_per_epoch or settings.steps_per_epoch
    own = settings.autoencoder
    if own is not None:
        joins = own.adversarial_from_step * epochs * steps // (own.n_epochs * own.steps_per_epoch)
        own = replace(own, n_epochs=epochs, steps_per_epoch=steps, adversarial_from_step=joins)
    changed = replace(settings, autoencoder=own, n_epochs=epochs, steps_per_epoch=steps)
    return replace(changed, kimg=_kimg_total(changed))


if __name__ == "__main__":
    sys.exit(main())
