"""The training of a site's generator."""

from __future__ import annotations

from common.files import write_json
from common.image_set import load_image_set, load_labels
from common.plan import load_plan
from dataset.training_splits import HELD_OUT_SPLITS, TRAIN_SPLITS
from engine.run_stage import StageContext
from features.fidelity_monitor import FidelityMonitor
from generators.interface import TrainRequest
from generators.registry import built_in_adapters, find_generator


def train_generator(context: StageContext) -> None:
    """Train the generator on the site's slices of the named splits, and on their masks where it makes masks too."""
    settings = context.stage.settings
    generator = find_generator(settings.get("adapter", settings["name"]))
    slices = load_image_set(context.inputs["slices"])
    seen = TRAIN_SPLITS[settings["train_on"]]
    images = slices.of_split(*seen)
    masks, n_mask_labels = None, None
    if "labels" in settings:
        in_train = [i for i, entry in enumerate(slices.entries) if entry.split in seen]
        masks, n_mask_labels = load_labels(context.inputs["slices"])[in_train], len(settings["labels"])
    others = slices.of_split(*HELD_OUT_SPLITS[settings["train_on"]])
    mirrored = generator.sees_mirrored(settings["settings"])
    monitor = FidelityMonitor(images, others, context.seed, context.device, mirrored, embeddings=context.embeddings)
    request = TrainRequest(
        images=images.images,
        plan=load_plan(context.inputs["plan"] / "plans.json"),
        kimg=None if settings["kimg"] == "auto" else float(settings["kimg"]),
        settings=settings["settings"],
        out=context.out,
        seed=context.seed,
        device=context.device,
        masks=masks,
        n_mask_labels=n_mask_labels,
        progress=context.progress,
        monitor=monitor,
        patients=[entry.patient for entry in images.entries],
    )
    resolved = generator.train(request)
    told: dict[str, object] = {"name": settings["name"], "n_images": len(images)}
    if settings["name"] not in built_in_adapters() or generator.shared_type is None:
        told["external"] = True  # a receiver may not have it: its settings are bounded names and numbers
    write_json(context.out / "settings.json", {**told, **resolved})
