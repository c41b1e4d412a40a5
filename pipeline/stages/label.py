"""The labels of a site's kept synthetic images."""

from __future__ import annotations

import logging

import numpy as np

from common.files import atomic_path, write_json
from common.image_set import ImageSet, load_image_set, load_labels, save_labels
from common.settings import to_dict
from dataset.slices import restore_labels
from engine.run_stage import StageContext
from evaluation.label_agreement import compare_labels
from evaluation.report.label_pictures import draw_least_alike
from nnunetv2_mod import SegmentationModel, load_model, predict_arrays, predict_normalised
from pipeline.synthetic_cases import UNUSED_SPACING, shared_images

log = logging.getLogger(__name__)

PIXEL_SPACING = (1.0, 1.0)


def label(context: StageContext) -> None:
    """Label the kept images with the site's own network, in the intensities and at the scale it was trained with.

    Labels that the generator made with them are compared with those, and shared in their place where the settings ask
    for it.
    """
    kept = load_image_set(context.inputs["filter"])
    labels = _predicted(context, kept)
    if "labels" in context.stage.settings and len(kept):
        generated = restore_labels(np.asarray(load_labels(context.inputs["filter"])), kept.info.scale)
        _compare(context, kept, generated, labels)
        labels = generated if context.stage.settings["shared"] == "generated" else labels
    save_labels(context.out, labels)


def _predicted(context: StageContext, kept: ImageSet) -> np.ndarray:
    model = load_model(context.inputs["segment_real"] / "model", context.device)
    batch_size = context.stage.settings["batch_size"]
    blocks = []
    for start in range(0, len(kept), batch_size):
        images = shared_images(kept.subset(list(range(start, min(start + batch_size, len(kept))))))
        blocks.append(_label_block(model, images, kept))
        context.progress(start + len(images), len(kept), "images")
    return np.concatenate(blocks) if blocks else np.empty((0, *kept.images.shape[2:]), np.uint8)


def _compare(context: StageContext, kept: ImageSet, generated: np.ndarray, predicted: np.ndarray) -> None:
    """How far generated and predicted labels agree, and a picture of those that agree least; both stay at the site."""
    settings = context.stage.settings
    names = [entry.name for entry in kept.entries]
    agreement = compare_labels(generated, predicted, settings["labels"], names)
    for one in agreement.classes:
        log.info("%s: Dice %s between generated and predicted labels of %d images", one.label, one.dice, one.n_compared)
    write_json(context.out / "agreement.json", {"shared": settings["shared"], **to_dict(agreement)})
    if agreement.least_alike:
        indices = [names.index(pair.image) for pair in agreement.least_alike]
        images, label_maps = shared_images(kept.subset(indices)), (generated[indices], predicted[indices])
        picture = draw_least_alike(agreement.least_alike, images, *label_maps, settings["labels"])
        with atomic_path(context.out / "least_alike.png") as temporary:
            temporary.write_bytes(picture)


def _label_block(model: SegmentationModel, images: np.ndarray, kept: ImageSet) -> np.ndarray:
    """2D images take the way of every 2D case; slices of volumes are already in the plan's normalised space (D5)."""
    if kept.info.volumetric:
        return predict_normalised(model, images)
    spacings = [(UNUSED_SPACING, *PIXEL_SPACING)] * len(images)
    cases = [image[:, None].astype(np.float32) for image in images]
    return np.concatenate(predict_arrays(model, cases, spacings)).astype(np.uint8)
