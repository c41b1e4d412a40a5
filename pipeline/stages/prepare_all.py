"""The pooled real data of all sites."""

from __future__ import annotations

import os
from typing import Any

from common.files import read_json, write_json
from engine.run_stage import StageContext
from nnunetv2_mod.raw_dataset import raw_dataset


def prepare_all(context: StageContext) -> None:
    """The union of all sites, as links: the upper bound that a deployment does not have."""
    target = context.out / "raw" / context.stage.settings["dataset_name"]
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    patients: dict[str, str] = {}
    dataset_json: dict[str, Any] = {}
    n_training = 0
    for prepared in context.inputs.values():
        site_dataset = raw_dataset(prepared)
        for file in sorted(site_dataset.glob("*/*")):
            link = target / file.relative_to(site_dataset)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(file, link.parent))
        for part, names in read_json(site_dataset.parent / "splits.json").items():
            splits[part] += names
        patients |= read_json(site_dataset.parent / "patients.json")
        dataset_json = read_json(site_dataset / "dataset.json")
        n_training += dataset_json["numTraining"]
    write_json(target / "dataset.json", {**dataset_json, "numTraining": n_training})
    write_json(target.parent / "splits.json", splits)
    write_json(target.parent / "patients.json", patients)
