"""Training in rounds: the common plan, every site's cases prepared by it, and the rounds themselves."""

from __future__ import annotations

from pathlib import Path

from common.files import read_json, write_json
from common.settings import from_dict, to_dict
from engine.run_stage import StageContext
from engine.workers import WorkerSpec
from federated.rounds import run_rounds
from federated.settings import RoundSettings
from nnunetv2_mod import PlanSettings, SiteStatistics, adopt_plan, negotiate_plan, site_statistics
from pipeline.stages.prepare import raw_dataset


def tell_statistics(context: StageContext) -> None:
    """What a site tells for the common plan: medians and pooled intensities, no case of its own."""
    write_json(context.out / "statistics.json", to_dict(site_statistics(context.inputs["plan"])))


def negotiate(context: StageContext) -> None:
    """nnU-Net's plan for the union of the sites, from their statistics alone."""
    statistics = {
        role.removeprefix("statistics:"): from_dict(SiteStatistics, read_json(folder / "statistics.json"))
        for role, folder in sorted(context.inputs.items())
    }
    settings = context.stage.settings
    negotiate_plan(statistics, context.out, settings["dataset_name"], context.settings(PlanSettings, "plan"))


def adopt(context: StageContext) -> None:
    """A site's cases preprocessed by the common plan."""
    dataset = raw_dataset(context.inputs["prepare"])
    plans = read_json(context.inputs["common_plan"] / "plans.json")
    adopt_plan(dataset, plans, context.out, read_json(dataset.parent / "splits.json"), context.progress)


def train_in_rounds(context: StageContext) -> None:
    """FedAvg or a relative of it: a worker a site, alive through all rounds."""
    settings = context.stage.settings
    workers = context.workers(
        {site: _client(context, site, context.inputs[f"adopt:{site}"]) for site in context.stage.members}
    )
    try:
        run_rounds(workers, context.out, context.settings(RoundSettings, "rounds"), context.progress)
    finally:
        workers.close()
    write_json(context.out / "settings.json", {"strategy": context.stage.name, **settings["rounds"]})


def _client(context: StageContext, site: str, planned: Path) -> WorkerSpec:
    settings = context.stage.settings
    return WorkerSpec(
        "federated.client:Client",
        {
            "planned": str(planned),
            "folder": str(context.out / "sites" / site),
            "train": settings["train"],
            "rounds": settings["rounds"],
            "seed": settings["seeds"][site],
            "initial_seed": settings["initial_seed"],
            "device": context.device,
        },
    )
