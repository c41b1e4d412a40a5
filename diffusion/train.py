"""Train a diffusion model on a dataset that nnU-Net has preprocessed.

    python -m diffusion.train 4 --dimensions 3D --model ldm --fold 0

trains on the cases of dataset 4 what ``python -m diffusion.plan 4`` planned. The same command resumes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from common.command import command
from common.errors import InputError
from common.machine import found_device
from common.progress import shown_progress
from diffusion.settings import DiffusionSettings

log = logging.getLogger(__name__)

RESULTS_VARIABLE = "nnUNet_results"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="id or name of an nnU-Net dataset, or the folder of its preprocessed cases")
    parser.add_argument("--dimensions", choices=("2D", "3D"), required=True, help="train on slices or on volumes")
    parser.add_argument("--model", choices=("ddpm", "ldm"), required=True, help="in pixels, or in latents")
    parser.add_argument("--fold", default="0", help="0 to 4 as nnU-Net's splits_final.json says, or all")
    parser.add_argument("--plan", type=Path, help="file (default: diffusion_plan.yaml of the dataset)")
    parser.add_argument("--out", type=Path, help="(default: a folder for this fold under $nnUNet_results)")
    parser.add_argument("--epochs", type=int, help="of each of the two trainings (default: the plan's)")
    parser.add_argument("--steps-per-epoch", type=int, help="(default: the plan's)")
    parser.add_argument("--seed", type=int, default=12345, help="of the weights and of the order of the cases")
    parser.add_argument("--device", default="auto", help="cpu, cuda (all GPUs), cuda:1 ..., or auto")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Train, and print the path of the model."""
    import torch

    from common.plan import plan_from_json
    from diffusion.crops import CropData
    from diffusion.plan import CONFIGURATIONS, PLAN_FILE, read_plan, read_source
    from diffusion.training_run import RESULT, n_processes_for, train
    from nnunetv2_mod.nnunet_folder import find_dataset

    dataset = find_dataset(chosen.dataset)
    path = chosen.plan or dataset.preprocessed / PLAN_FILE
    settings = with_epochs(read_plan(path, chosen.dimensions, chosen.model), chosen.epochs, chosen.steps_per_epoch)
    out = chosen.out or _results_folder(dataset.name, chosen.dimensions, chosen.model, chosen.fold)
    device = found_device(chosen.device)
    fold = chosen.fold if chosen.fold == "all" else int(chosen.fold) if chosen.fold.isdecimal() else chosen.fold
    plans_name, channels = read_source(path)
    dataset = find_dataset(chosen.dataset, plans_name)
    plan = plan_from_json(dataset.plans, CONFIGURATIONS[chosen.dimensions])
    if max(channels) >= plan.n_channels:
        problem, fix = f"channels {channels} of images with {plan.n_channels}", "plan the dataset again"
        raise InputError(problem, where=path, fix=fix)
    data = CropData(dataset, plan, settings, fold, chosen.seed, channels)
    n_processes = n_processes_for(settings, torch.cuda.device_count() if device == "cuda" else 0)
    model = f"{chosen.dimensions} {chosen.model} of {dataset.name}, fold {chosen.fold}"
    log.info("%s, on %d x %s: %s", model, n_processes, device, out)
    with shown_progress() as progress:
        train(data, out, settings, chosen.seed, device, progress, None, n_processes)
    sys.stdout.write(f"{out / RESULT}\n")


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
    from diffusion.training_run import kimg_total

    for name, value in (("--epochs", n_epochs), ("--steps-per-epoch", steps_per_epoch)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is too small", where="diffusion.train", fix="use 1 or more")
    epochs, steps = n_epochs or settings.n_epochs, steps_per_epoch or settings.steps_per_epoch
    own = settings.autoencoder
    if own is not None:
        joins = own.adversarial_from_step * epochs * steps // (own.n_epochs * own.steps_per_epoch)
        own = replace(own, n_epochs=epochs, steps_per_epoch=steps, adversarial_from_step=joins)
    changed = replace(settings, autoencoder=own, n_epochs=epochs, steps_per_epoch=steps)
    return replace(changed, kimg=kimg_total(changed))


if __name__ == "__main__":
    sys.exit(main())
