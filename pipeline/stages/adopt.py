"""A site's cases, preprocessed by the common plan."""

from __future__ import annotations

from common.files import read_json
from engine.run_stage import StageContext
from nnunetv2_mod import adopt_plan
from nnunetv2_mod.plan import with_batch_norm
from nnunetv2_mod.raw_dataset import raw_dataset


def adopt(context: StageContext) -> None:
    """A site's cases preprocessed by the common plan, with another normalisation of the network where one was asked."""
    dataset = raw_dataset(context.inputs["prepare"])
    plans = read_json(context.inputs["common_plan"] / "plans.json")
    if context.stage.settings.get("norm") == "batch":
        plans = with_batch_norm(plans)
    adopt_plan(dataset, plans, context.out, read_json(dataset.parent / "splits.json"), context.progress)
