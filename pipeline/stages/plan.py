"""nnU-Net's fingerprint, plan and preprocessed cases."""

from __future__ import annotations

from common.files import read_json
from engine.run_stage import StageContext
from nnunetv2_mod import PlanSettings, plan_dataset
from nnunetv2_mod.raw_dataset import raw_dataset


def plan(context: StageContext) -> None:
    """nnU-Net's fingerprint, plan and preprocessed cases."""
    dataset = raw_dataset(context.inputs["prepare"])
    splits = read_json(dataset.parent / "splits.json")
    plan_dataset(dataset, context.out, context.settings(PlanSettings, "plan"), splits, context.progress)
