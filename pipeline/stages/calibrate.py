"""How similar images of different patients of the site are: what the filter decides by."""

from __future__ import annotations

import logging

import numpy as np

from common.files import write_json
from common.image_set import load_image_set
from common.settings import from_dict, to_dict
from dataset.training_splits import TRAIN_SPLITS
from engine.run_stage import StageContext
from memorization.calibration import MemorizationConfig, calibrate, real_to_real, site_embedder

log = logging.getLogger(__name__)


def calibrate_threshold(context: StageContext) -> None:
    """The distance below which a synthetic image is dropped, from images of different patients of the site.

    Under the fused rule also the likeness between patients, by every statistic; duplicates between patients are named
    and do not calibrate.
    """
    # The site's real images; those that the generator is trained on are the filter's references.
    settings = context.stage.settings
    config = from_dict(MemorizationConfig, settings["memorization"], "memorization")
    slices = load_image_set(context.inputs["slices"]).of_split("train", "val")
    names, patients = ([str(getattr(entry, key)) for entry in slices.entries] for key in ("name", "patient"))
    indexed = np.array([entry.split in TRAIN_SPLITS[settings["train_on"]] for entry in slices.entries])

    # Their features, and those of their mirror images where the filter's index holds them.
    embedder = site_embedder(config, context.device, context.embeddings)
    features, mirrored = embedder.embed(slices.images, context.progress), None
    if settings["mirrored"]:
        mirrored = embedder.embed(slices.images[..., ::-1], context.progress)

    # How similar images of different patients are.
    result = calibrate(features, patients, int(indexed.sum()), config, context.seed, mirrored)

    write_json(context.out / "calibration.json", to_dict(result))
    np.save(context.out / "features.npy", features)
    if mirrored is not None:
        np.save(context.out / "features_mirrored.npy", mirrored)
    if config.rule == "fused":
        found = real_to_real(slices.images, features, mirrored, np.array(patients), indexed, context.progress)
        np.save(context.out / "likeness.npy", found.values)
        np.save(context.out / "likeness_images.npy", found.images)
        pairs = [[names[image], names[other]] for image, other in found.duplicates]
        write_json(context.out / "duplicates.json", {"pairs": pairs})
        if pairs:
            log.warning("%d images are duplicates of another patient's and do not calibrate: %s", len(pairs), pairs[:5])
        level, lowest = config.percentile / 100, 1 / (len(found.values) + 1)
        if lowest > level:
            log.warning("%d images allow no level below %.3f; %.3f was asked for", len(found.values), lowest, level)
