"""Whether a site's kept synthetic images may leave: figures, gates and a verdict, before a package is written."""

from __future__ import annotations

import numpy as np

from common.files import read_json
from common.image_set import load_image_set
from common.settings import from_dict
from dataset.training_splits import HELD_OUT_SPLITS, TRAIN_SPLITS
from engine.run_stage import StageContext
from memorization.filter import load_site_filter
from memorization.gates import GatesConfig
from memorization.site_audit import AuditImages, OwnedImages, audit, write_audit


def audit_site(context: StageContext) -> None:
    """Compare the kept images with those trained on and with those of patients the generator never saw.

    Features come from ``calibrate`` and ``filter``, so that no image is embedded twice; test patients are in neither.
    Before it, the filter in use judges copies planted for it, and what it finds of them is a gate too.
    """
    settings = context.stage.settings
    train_on = settings["train_on"]
    # The filter of the site, set as the filter stage sets it, where copies are planted for it.
    own = None
    if settings["gates"]["n_planted_copies"]:
        places = context.inputs["calibrate"], context.inputs["slices"]
        own = load_site_filter(*places, settings, TRAIN_SPLITS[train_on], context.device, context.embeddings)
    # Real images: those trained on, and those of patients held out; synthetic ones: those that the filter kept.
    config = from_dict(GatesConfig, settings["gates"], "gates")
    n_sampled = read_json(context.inputs["filter"] / "filter.json")["n_sampled"]
    real = load_image_set(context.inputs["slices"]).of_split("train", "val")
    features = np.load(context.inputs["calibrate"] / "features.npy")
    in_train, in_heldout = (
        [i for i, entry in enumerate(real.entries) if entry.split in splits[train_on]]
        for splits in (TRAIN_SPLITS, HELD_OUT_SPLITS)
    )
    train_patients, heldout_patients = ([str(real.entries[i].patient) for i in rows] for rows in (in_train, in_heldout))
    kept = np.load(context.inputs["filter"] / "features.npy")
    images = AuditImages(features[in_train], train_patients, features[in_heldout], heldout_patients, kept)
    others = OwnedImages(real.subset(in_heldout).images, heldout_patients)
    outcome = audit(images, n_sampled, config, context.seed, own, others, context.progress)
    write_audit(context.out, outcome)
