"""Train or fine-tune one nnU-Net: settings, learning-rate schedules and the call; the trainer itself is next door."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.files import read_json, write_json, write_text
from common.progress import Progress, silent
from nnunetv2_mod.environment import nnunet_roots
from nnunetv2_mod.plan import CONFIGURATION
from nnunetv2_mod.schedule import TrainSettings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
OWN_PLAN = "use the plan it was trained by"


def train(
    planned: Path,
    out: Path,
    settings: TrainSettings,
    seed: int,
    device: str = "cpu",
    initial_model: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Train on the preprocessed cases in ``planned`` (a folder written by ``plan_dataset`` or ``adopt_plan``).

    Writes ``out/model/`` (``model.safetensors``, ``plans.json``, ``dataset.json``), ``out/curves.jsonl`` and nnU-Net's
    own results under ``out/nnunet/``. Resumes from the last checkpoint there; on one CPU thread the resumed run equals
    an undisturbed one bit for bit, as every epoch draws from its own seed.

    Args:
        initial_model: a ``model`` folder whose weights, heads included, start the training (fine-tuning).
    """
    import torch

    from nnunetv2_mod.trainer import build_trainer

    spawn_augmentation(settings)
    dataset = only_dataset(planned)
    results = out / "nnunet" / "nnUNet_results"
    results.mkdir(parents=True, exist_ok=True)
    with nnunet_roots(
        planned, planned / "preprocessed", results, augmentation_processes=settings.augmentation_processes
    ):
        trainer = build_trainer(dataset, settings, seed, torch.device(device), progress)
        folder = Path(trainer.output_folder)
        if not (folder / "checkpoint_final.pth").is_file():
            trainer.initialize()
            if not trainer.resume() and initial_model is not None:
                load_all_weights(trainer.network, initial_model / MODEL_FILE)
            trainer.run_training()
    _export(dataset, folder, out)


def load_all_weights(network: torch.nn.Module, model_file: Path) -> None:
    """Load every tensor, segmentation heads included; nnU-Net's own loader leaves the heads out.

    Raises:
        InputError: names or shapes differ, naming the first that does.
    """
    tensors, _ = load_tensors(model_file)
    network = getattr(network, "_orig_mod", network)  # torch.compile wraps it on GPUs
    target = network.state_dict()
    for name in sorted(set(target) ^ set(tensors)):
        raise InputError(f"tensor {name!r} is only on one side", where=model_file, fix=OWN_PLAN)
    for name, tensor in tensors.items():
        if target[name].shape != tensor.shape:
            raise InputError(
                f"tensor {name!r} is {tuple(tensor.shape)}, the plan needs {tuple(target[name].shape)}",
                where=model_file,
                fix=OWN_PLAN,
            )
    network.load_state_dict(tensors)


def spawn_augmentation(settings: TrainSettings) -> None:
    """Spawn nnU-Net's augmenters: the default fork of a process with threads, as every Ray worker is, can hang."""
    if settings.augmentation_processes:
        multiprocessing.set_start_method("spawn", force=True)


def only_dataset(planned: Path) -> Path:
    """The one preprocessed dataset of a planned folder."""
    datasets = sorted((planned / "preprocessed").glob("Dataset*"))
    if len(datasets) != 1:
        raise InputError(
            f"there are {len(datasets)} preprocessed datasets, and one is needed",
            where=planned,
            fix="run the stage before it again",
        )
    return datasets[0]


def _export(dataset: Path, results: Path, out: Path) -> None:
    """Best checkpoint as safetensors with its plan, and the curves without wall-clock times."""
    import torch

    best: dict[str, Any] = torch.load(results / "checkpoint_best.pth", map_location="cpu", weights_only=False)
    final: dict[str, Any] = torch.load(results / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    mirror_axes = best["inference_allowed_mirroring_axes"] or ()
    write_model(out / "model", dataset, best["network_weights"], int(best["current_epoch"]), mirror_axes)
    labels = [name for name in read_json(dataset / "dataset.json")["labels"] if name not in ("background", "ignore")]
    write_text(out / "curves.jsonl", "".join(_curve_lines(final["logging"], labels)))


def write_model(
    folder: Path, dataset: Path, tensors: Mapping[str, torch.Tensor], epoch: int, mirror_axes: Sequence[int]
) -> None:
    """Write a ``model`` folder: the state dictionary of the network with the plan of its preprocessed ``dataset``."""
    metadata = {"epoch": epoch, "mirror_axes": list(mirror_axes), "configuration": CONFIGURATION}
    save_tensors(folder / MODEL_FILE, tensors, metadata)
    write_json(folder / "plans.json", read_json(dataset / "nnUNetPlans.json"))
    shutil.copyfile(dataset / "dataset.json", folder / "dataset.json")


def _curve_lines(logging_state: dict[str, list[Any]], labels: list[str]) -> list[str]:
    """One line an epoch; the validation Dice also by label, as a mean hides a label that is never found."""
    keys = {
        "train_loss": "train_losses",
        "val_loss": "val_losses",
        "pseudo_dice": "mean_fg_dice",
        "pseudo_dice_ema": "ema_fg_dice",
        "learning_rate": "lrs",
    }
    n_epochs = len(logging_state["train_losses"])
    lines = []
    for epoch in range(n_epochs):
        row: dict[str, Any] = {name: float(logging_state[key][epoch]) for name, key in keys.items()}
        of_labels = zip(labels, logging_state["dice_per_class_or_region"][epoch], strict=True)
        row["pseudo_dice_by_label"] = {label: float(dice) for label, dice in of_labels}
        lines.append(json.dumps({"step": epoch + 1, "unit": "epoch", **row}) + "\n")
    return lines
