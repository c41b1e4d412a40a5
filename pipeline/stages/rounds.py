"""FedAvg and its relatives: a training in rounds over all sites."""

from __future__ import annotations

from contextlib import closing

from common.files import write_json
from engine.run_stage import StageContext
from engine.workers import WorkerSpec
from federated.rounds import run_rounds
from federated.settings import RoundSettings


def train_in_rounds(context: StageContext) -> None:
    """FedAvg or a relative of it: a worker a site, alive through all rounds."""
    settings = context.stage.settings
    with closing(context.workers({site: _client(context, site) for site in context.stage.members})) as workers:
        run_rounds(workers, context.out, context.settings(RoundSettings, "rounds"), context.progress)
    write_json(context.out / "settings.json", {"strategy": context.stage.name, **settings["rounds"]})


def _client(context: StageContext, site: str) -> WorkerSpec:
    settings = context.stage.settings
    return WorkerSpec(
        "federated.client:Client",
        {
            "planned": str(context.inputs[f"adopt:{site}"]),
            "folder": str(context.out / "sites" / site),
            "train": settings["train"],
            "rounds": settings["rounds"],
            "seed": settings["seeds"][site],
            "initial_seed": settings["initial_seed"],
            "device": context.device,
        },
    )
