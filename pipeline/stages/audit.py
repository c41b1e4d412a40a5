"""Whether a site's kept synthetic images may leave: figures, gates and a verdict, before a package is written."""

from __future__ import annotations

import logging

import numpy as np

from common.files import read_json, write_json
from common.image_set import ImageSet, load_image_set
from common.seeds import derive_seed
from common.settings import to_dict
from dataset.training_splits import HELD_OUT_SPLITS, TRAIN_SPLITS
from engine.run_stage import StageContext
from memorization.filter import load_site_filter
from memorization.gates import GatesConfig
from memorization.planted.audit_report import draw_planted
from memorization.planted.site_planted import OwnedImages, PlantedAudit, find_planted, real_drops, to_planted_audit
from memorization.site_audit import AuditImages, audit, write_exposure

log = logging.getLogger(__name__)


def audit_site(context: StageContext) -> None:
    """Compare the kept images with those trained on and with those of patients the generator never saw.

    Features come from ``calibrate`` and ``filter``, so that no image is embedded twice; test patients are in neither.
    Before it, the filter in use judges copies planted for it, and what it finds of them is a gate too.
    """
    train_on = context.stage.settings["train_on"]
    real = load_image_set(context.inputs["slices"]).of_split("train", "val")
    entries, features = real.entries, np.load(context.inputs["calibrate"] / "features.npy")
    in_train, in_heldout = (
        [i for i, entry in enumerate(entries) if entry.split in splits[train_on]]
        for splits in (TRAIN_SPLITS, HELD_OUT_SPLITS)
    )
    images = AuditImages(
        features[in_train],
        [entries[i].patient for i in in_train],
        features[in_heldout],
        [entries[i].patient for i in in_heldout],
        np.load(context.inputs["filter"] / "features.npy"),
    )
    n_sampled = read_json(context.inputs["filter"] / "filter.json")["n_sampled"]
    config = context.settings(GatesConfig, "gates")
    planted = _planted(context, real.subset(in_heldout), images.heldout, config.n_planted_copies)
    found = planted.recall if planted else None
    result, of_patients = audit(images, n_sampled, config, context.seed, found)
    write_exposure(context.out / "exposure.csv", of_patients)
    write_json(context.out / "audit.json", to_dict(result))


def _planted(context: StageContext, held_out: ImageSet, features: np.ndarray, n_copies: int) -> PlantedAudit | None:
    """What the filter of the site, set as the filter stage sets it, finds of planted copies; None: none are planted."""
    if not n_copies:
        return None
    settings = context.stage.settings
    own = load_site_filter(
        *(context.inputs["calibrate"], context.inputs["slices"], settings, TRAIN_SPLITS[settings["train_on"]]),
        context.device,
        context.embeddings,
    )
    found = find_planted(
        _owned(own.references),
        _owned(held_out if len(held_out) else own.references),
        lambda copies: ~own.judge(copies).kept,
        n_copies,
        derive_seed(context.seed, "planted copies"),
        progress=context.progress,
    )
    honest = real_drops(*own.judge_real({entry.patient for entry in held_out.entries}, features))
    result = to_planted_audit(own.config.rule, own.config.embedder, own.level, len(own.references), found, honest)
    log.info("%d of %d planted copies found, mean over kinds %.3f", result.found, result.n, result.mean_recall)
    write_json(context.out / "planted.json", to_dict(result))
    draw_planted(context.out / "planted.png", result)
    return result


def _owned(images: ImageSet) -> OwnedImages:
    return OwnedImages(images.images, [entry.patient for entry in images.entries])
