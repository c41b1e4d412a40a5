"""How similar images of different patients of the site are: what the filter decides by."""

from __future__ import annotations

import logging

import numpy as np

from common.files import write_json
from common.image_set import (
    ImageSet,
    load_image_set,
)
from common.settings import to_dict
from dataset.training_splits import TRAIN_SPLITS
from engine.run_stage import StageContext
from memorization.calibration import MemorizationConfig, calibrate, real_to_real, site_embedder

log = logging.getLogger(__name__)


def calibrate_threshold(context: StageContext) -> None:
    """The distance below which a synthetic image is dropped, from images of different patients of the site."""
    settings = context.stage.settings
    config = context.settings(MemorizationConfig, "memorization")
    slices = load_image_set(context.inputs["slices"]).of_split("train", "val")
    features, mirrored = _embed_real(context, slices, config, settings["mirrored"])
    n_references = len(slices.of_split(*TRAIN_SPLITS[settings["train_on"]]))
    result = calibrate(
        features, [entry.patient for entry in slices.entries], n_references, config, context.seed, mirrored
    )
    write_json(context.out / "calibration.json", to_dict(result))
    np.save(context.out / "features.npy", features)
    if mirrored is not None:
        np.save(context.out / "features_mirrored.npy", mirrored)
    if config.rule == "fused":
        _calibrate_fused(context, slices, features, mirrored, config)


def _calibrate_fused(
    context: StageContext,
    slices: ImageSet,
    features: np.ndarray,
    mirrored: np.ndarray | None,
    config: MemorizationConfig,
) -> None:
    """Likeness between the site's patients; duplicates between patients are named and do not calibrate."""
    indexed = np.array([entry.split in TRAIN_SPLITS[context.stage.settings["train_on"]] for entry in slices.entries])
    patients = np.array([entry.patient for entry in slices.entries])
    honest = real_to_real(slices.images, features, mirrored, patients, indexed, context.progress)
    np.save(context.out / "likeness.npy", honest.values)
    np.save(context.out / "likeness_images.npy", honest.images)
    names = [entry.name for entry in slices.entries]
    pairs = [[names[image], names[other]] for image, other in honest.duplicates]
    write_json(context.out / "duplicates.json", {"pairs": pairs})
    if pairs:
        log.warning("%d images are duplicates of another patient's and do not calibrate: %s", len(pairs), pairs[:5])
    level, lowest = config.percentile / 100, 1 / (len(honest.values) + 1)
    if lowest > level:
        log.warning("%d images allow no level below %.3f; %.3f was asked for", len(honest.values), lowest, level)


def _embed_real(
    context: StageContext, slices: ImageSet, config: MemorizationConfig, mirrored: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    embedder = site_embedder(config, context.device, context.embeddings)
    features = embedder.embed(slices.images, context.progress)
    return features, embedder.embed(slices.images[..., ::-1], context.progress) if mirrored else None
