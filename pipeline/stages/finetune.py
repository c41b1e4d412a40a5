"""The fine-tuning of the pooled synthetic set's network at a site."""

from __future__ import annotations

from common.files import read_json
from engine.run_stage import StageContext
from nnunetv2_mod import TrainSettings, adopt_plan, train
from nnunetv2_mod.raw_dataset import raw_dataset


def fine_tune(context: StageContext) -> None:
    """Go on from the network of the pooled synthetic set on the site's real cases, prepared by that network's plan."""
    dataset = raw_dataset(context.inputs["prepare"])
    model = context.inputs["segment_syn"] / "model"
    if not (context.out / "plans.json").is_file():
        splits = read_json(dataset.parent / "splits.json")
        adopt_plan(dataset, read_json(model / "plans.json"), context.out, splits)
    settings = context.settings(TrainSettings, "train")
    train(context.out, context.out, settings, context.seed, context.device, model, context.progress)
