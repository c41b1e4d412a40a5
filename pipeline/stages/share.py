"""The package that leaves a site, or its refusal."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from common.files import read_json
from common.image_set import load_image_set
from common.plan import load_plan
from common.settings import from_dict, to_dict
from engine.run_stage import StageContext
from memorization.gates import REFUSED, PlantedRecall, rounded
from memorization.site_audit import SiteAudit
from nnunetv2_mod.raw_dataset import raw_dataset
from pipeline.synthetic_cases import ct_normalisation, synthetic_cases, what_images_are
from sharing import (
    FailedGate,
    PackageFacts,
    Refusal,
    SharedAudit,
    SharedFigure,
    SharedGate,
    SharedPlanted,
    rounded_share,
    write_package,
    write_refusal,
)

log = logging.getLogger(__name__)

PRIVATE_GENERATOR_KEYS = ("n_images",)  # how many real images a site has is its own business
TELL_HOW_MANY = ("n_references", "level")  # at a small site the level is one over the number of its images


def share(context: StageContext) -> None:
    """Write the site's package: kept synthetic images and their labels, a minimal manifest, figures, a card.

    Where the site's audit refuses, write the refusal in its place.
    """
    audit = from_dict(SiteAudit, read_json(context.inputs["audit"] / "audit.json"))
    if audit.verdict == REFUSED:
        failed = tuple(FailedGate(gate.name, gate.reason, gate.what_would_help) for gate in audit.failed)
        refusal = Refusal(context.stage.site, shared_audit(audit), failed)
        log.error("%s", refusal)
        write_refusal(context.out, refusal)
        return
    kept = load_image_set(context.inputs["filter"])
    labels = np.load(context.inputs["label"] / "labels.npy", mmap_mode="r")
    hounsfield = ct_normalisation(load_plan(context.inputs["plan"] / "plans.json"))
    dataset_json = read_json(raw_dataset(context.inputs["prepare"]) / "dataset.json")
    generator = read_json(context.inputs["generator"] / "settings.json")
    settings = context.stage.settings
    facts = PackageFacts(
        **what_images_are(kept, hounsfield, dataset_json, settings["min_slice_distance_mm"]),
        site=context.stage.site,
        generator={key: value for key, value in generator.items() if key not in PRIVATE_GENERATOR_KEYS},
        privacy=_privacy(read_json(context.inputs["filter"] / "filter.json"), audit),
    )
    cases = synthetic_cases(context.stage.site, kept, labels, hounsfield, settings["stack_size"], context.progress)
    write_package(context.out, cases, facts, kept.info.volumetric)


def _privacy(figures: dict[str, Any], audit: SiteAudit) -> dict[str, Any]:
    kept = {key: value for key, value in figures.items() if key not in TELL_HOW_MANY}
    return {**kept, "audit": to_dict(shared_audit(audit))}


def shared_audit(audit: SiteAudit) -> SharedAudit:
    """What of an audit may leave: no number of real images or patients, no reason and no baseline (they hold both)."""
    return SharedAudit(
        n_audited=audit.n_audited,
        enforced=audit.enforced,
        familywise_level=audit.familywise_level,
        figures=tuple(SharedFigure(one.name, one.unit, one.value, one.low, one.high, one.p) for one in audit.figures),
        planted=_shared_planted(audit.planted),
        gates=tuple(
            SharedGate(
                name=gate.name,
                unit=gate.unit,
                value=gate.value,
                comparison=gate.comparison,
                limit=gate.limit,
                p=gate.p,
                level=gate.level,
                decision=gate.decision,
            )
            for gate in audit.gates
        ),
    )


def _shared_planted(planted: PlantedRecall | None) -> SharedPlanted | None:
    if planted is None:
        return None
    mean_recall, share = rounded(planted.mean_recall), rounded_share(planted.honest_dropped_share)
    return SharedPlanted(planted.n, planted.found, float(mean_recall or 0.0), share)
