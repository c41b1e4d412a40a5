"""The synthetic set that DSL's generator makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.files import read_json, write_json
from common.image_set import load_image_set
from common.settings import from_dict
from engine.run_stage import StageContext
from federated.dsl.synthesis import synthesise
from nnunetv2_mod import PlanSettings, SiteStatistics, plan_dataset
from pipeline.synthetic_cases import Normalisation, split_synthetic, synthetic_cases, what_images_are
from sharing import PackageFacts, write_raw_cases


def make_dataset(context: StageContext) -> None:
    """One image for every mask that the sites gave away, planned as one dataset: what the hub can train on."""
    settings = context.stage.settings
    folder, n_images = context.out / "images", settings["images_per_mask"]
    synthesise(context.inputs["dsl"], folder, context.seed, n_images, context.device, context.progress)
    target = context.out / "raw" / settings["dataset_name"]
    pooled: dict[str, tuple[Sequence[str], int]] = {}
    for site in settings["sites"]:
        images, labels = load_image_set(folder / site), np.load(folder / site / "labels.npy", mmap_mode="r")
        told = from_dict(SiteStatistics, read_json(context.inputs[f"statistics:{site}"] / "statistics.json"))
        hounsfield = _ct_normalisation(told)
        facts = PackageFacts(
            **what_images_are(images, hounsfield, told.dataset_json, settings["min_slice_distance_mm"]),
            site=site,
            generator={"name": "dsl"},
            privacy={},
        )
        cases = synthetic_cases(site, images, labels, hounsfield, settings["stack_size"], context.progress)
        written = write_raw_cases(target, cases, facts, images.info.volumetric)
        pooled[site] = (written.names, written.n_images)
    splits = split_synthetic(pooled, settings, context.seed)
    n_cases = sum(len(names) for names, _ in pooled.values())
    write_json(target / "dataset.json", {**read_json(target / "dataset.json"), "numTraining": n_cases})
    write_json(target.parent / "splits.json", splits)
    plan_dataset(target, context.out, context.settings(PlanSettings, "plan"), splits, context.progress)


def _ct_normalisation(told: SiteStatistics) -> Normalisation:
    """As the site's own plan has it, from what the site told; nnU-Net knows CT by the channels' names."""
    if any(name != "CT" for name in told.dataset_json["channel_names"].values()):
        return ()
    channels = (told.intensities[channel] for channel in sorted(told.intensities, key=int))
    return tuple((channel["mean"], channel["std"]) for channel in channels)
