"""A training of nnU-Net, and a second attempt where the first one failed and the user wants one."""

from __future__ import annotations

import logging
from pathlib import Path

from common.seeds import derive_seed
from engine.run_stage import StageContext
from evaluation.curves import find_fault, read_curves
from nnunetv2_mod import TrainSettings, train

log = logging.getLogger(__name__)

WRITTEN = ("model", "nnunet", "curves.jsonl")  # by one attempt
FIRST_ATTEMPT = "first_attempt"


def train_segmentation(context: StageContext) -> None:
    """Train nnU-Net on a planned dataset: a site's real cases, all sites' real cases, or synthetic ones."""
    train_network(context, context.inputs["plan"])


def train_network(context: StageContext, planned: Path, initial_model: Path | None = None) -> None:
    """Train on ``planned``; with ``retry_failed`` once more from another seed where the curve shows a fault.

    The first attempt stays in ``first_attempt/``. A run that was killed goes on in the attempt it was in.
    """
    settings, first = context.settings(TrainSettings, "train"), context.out / FIRST_ATTEMPT
    if _unfinished(first).is_dir():
        _set_aside(context.out, first)
    seed = derive_seed(context.seed, "second attempt") if first.is_dir() else context.seed
    train(planned, context.out, settings, seed, context.device, initial_model, context.progress)
    fault = find_fault(read_curves(context.out / "curves.jsonl"))
    if fault and context.stage.settings.get("retry_failed") and not first.is_dir():
        log.warning("this training %s; once more with another seed", fault)
        _set_aside(context.out, first)
        train_network(context, planned, initial_model)


def _set_aside(out: Path, first: Path) -> None:
    """Move a finished attempt; the folder gets its name last, so that a kill in between moves the rest later."""
    _unfinished(first).mkdir(exist_ok=True)
    for name in WRITTEN:
        if (out / name).exists():
            (out / name).rename(_unfinished(first) / name)
    _unfinished(first).rename(first)


def _unfinished(first: Path) -> Path:
    return first.with_name(f"{first.name}.partial")
