"""Whether a site's kept synthetic images may leave: figures, gates and a verdict, before a package is written."""

from __future__ import annotations

import numpy as np

from common.files import read_json, write_json
from common.image_set import load_image_set
from common.settings import to_dict
from evaluation.fidelity import frechet_distance
from memorization.gates import GatesConfig
from memorization.site_audit import AuditImages, audit, write_exposure
from pipeline.run_stage import StageContext
from pipeline.stages.synthesise import HELD_OUT, N_SPLITS


def audit_site(context: StageContext) -> None:
    """Compare the kept images with those trained on and with those of patients the generator never saw.

    Features come from ``calibrate`` and ``filter``, so that no image is embedded twice; test patients are in neither.
    """
    train_on = context.stage.settings["train_on"]
    entries = load_image_set(context.inputs["slices"]).of_split("train", "val").entries
    real = np.load(context.inputs["calibrate"] / "features.npy")
    in_train, in_heldout = (
        [i for i, entry in enumerate(entries) if entry.split in splits[train_on]] for splits in (N_SPLITS, HELD_OUT)
    )
    images = AuditImages(
        real[in_train],
        [entries[i].patient for i in in_train],
        real[in_heldout],
        [entries[i].patient for i in in_heldout],
        np.load(context.inputs["filter"] / "features.npy"),
    )
    n_sampled = read_json(context.inputs["filter"] / "filter.json")["n_sampled"]
    config = context.settings(GatesConfig, "gates")
    result, of_patients = audit(images, n_sampled, config, frechet_distance, context.seed)
    write_exposure(context.out / "exposure.csv", of_patients)
    write_json(context.out / "audit.json", to_dict(result))
