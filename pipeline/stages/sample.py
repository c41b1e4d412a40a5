"""The synthetic images of a site, before the filter."""

from __future__ import annotations

from common.files import read_json
from engine.run_stage import StageContext
from pipeline.config import IMAGES_PER_TRAINING_IMAGE
from pipeline.samples import Draw


def sample(context: StageContext) -> None:
    """Sample images whose seeds follow from site, fold and experiment (the original's were 0, 1, 2, ... everywhere)."""
    settings = context.stage.settings
    n_trained_on = read_json(context.inputs["generator"] / "settings.json")["n_images"]
    n_images = settings["n_images"] if settings["n_images"] != "auto" else IMAGES_PER_TRAINING_IMAGE * n_trained_on
    draw = Draw(settings, context.seed, len(str(int(n_images) - 1)))
    draw(context, range(int(n_images))).save(context.out)
