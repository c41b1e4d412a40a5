"""A training of nnU-Net."""

from __future__ import annotations

from engine.run_stage import StageContext
from nnunetv2_mod import TrainSettings, train


def train_segmentation(context: StageContext) -> None:
    """Train nnU-Net on a planned dataset: a site's real cases, all sites' real cases, or synthetic ones."""
    settings = context.settings(TrainSettings, "train")
    train(context.inputs["plan"], context.out, settings, context.seed, context.device, None, context.progress)
