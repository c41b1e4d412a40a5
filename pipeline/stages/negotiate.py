"""The common plan of all sites, from what they tell."""

from __future__ import annotations

from common.files import read_json
from common.settings import from_dict
from engine.run_stage import StageContext
from nnunetv2_mod import PlanSettings, SiteStatistics, negotiate_plan


def negotiate(context: StageContext) -> None:
    """nnU-Net's plan for the union of the sites, from their statistics alone."""
    statistics = {
        role.removeprefix("statistics:"): from_dict(SiteStatistics, read_json(folder / "statistics.json"))
        for role, folder in sorted(context.inputs.items())
    }
    settings = context.stage.settings
    negotiate_plan(statistics, context.out, settings["dataset_name"], context.settings(PlanSettings, "plan"))
