"""The training of a site's generator."""

from __future__ import annotations

import numpy as np

from common.files import write_json
from common.image_set import (
    ImageSet,
    load_image_set,
    load_labels,
)
from common.plan import load_plan
from dataset.training_splits import HELD_OUT_SPLITS, TRAIN_SPLITS
from engine.run_stage import StageContext
from features.fidelity_monitor import FidelityMonitor
from generators.registry import find_generator


def train_generator(context: StageContext) -> None:
    """Train the generator on the site's slices of the named splits, and on their labels where it makes labels too."""
    settings = context.stage.settings
    slices = load_image_set(context.inputs["slices"])
    images = slices.of_split(*TRAIN_SPLITS[settings["train_on"]])
    generator = find_generator(settings["name"])
    gauge = FidelityMonitor(
        images,
        slices.of_split(*HELD_OUT_SPLITS[settings["train_on"]]),
        context.seed,
        context.device,
        generator.sees_mirrored(settings["settings"]),
        embeddings=context.embeddings,
    )
    resolved = generator.train(
        images.images,
        load_plan(context.inputs["plan"] / "plans.json"),
        None if settings["kimg"] == "auto" else float(settings["kimg"]),
        settings["settings"],
        context.out,
        context.seed,
        context.device,
        context.progress,
        gauge,
        *_labels_of(context, slices),
    )
    write_json(context.out / "settings.json", {"name": settings["name"], "n_images": len(images), **resolved})


def _labels_of(context: StageContext, slices: ImageSet) -> tuple[np.ndarray | None, int | None]:
    """Labels of the slices trained on and how many the dataset has, where the generator makes labels too."""
    settings = context.stage.settings
    if "labels" not in settings:
        return None, None
    seen = TRAIN_SPLITS[settings["train_on"]]
    indices = [i for i, entry in enumerate(slices.entries) if entry.split in seen]
    return load_labels(context.inputs["slices"])[indices], len(settings["labels"])
