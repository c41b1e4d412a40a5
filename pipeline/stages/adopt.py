"""A site's cases, preprocessed by the common plan."""

from __future__ import annotations

from common.files import read_json
from engine.run_stage import StageContext
from nnunetv2_mod import adopt_plan
from nnunetv2_mod.raw_dataset import raw_dataset


def adopt(context: StageContext) -> None:
    """A site's cases preprocessed by the common plan."""
    dataset = raw_dataset(context.inputs["prepare"])
    plans = read_json(context.inputs["common_plan"] / "plans.json")
    adopt_plan(dataset, plans, context.out, read_json(dataset.parent / "splits.json"), context.progress)
