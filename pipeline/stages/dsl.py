"""The training of DSL: one generator at the hub, a discriminator at every site."""

from __future__ import annotations

from contextlib import closing

from engine.run_stage import StageContext
from engine.workers import WorkerSpec
from federated.dsl.hub import train_dsl
from federated.dsl.settings import DslSettings


def train(context: StageContext) -> None:
    """Train the generator; a worker a site, alive through all iterations."""
    settings = context.settings(DslSettings, "dsl")
    with closing(context.workers({site: _site(context, site) for site in context.stage.members})) as workers:
        train_dsl(workers, context.out, settings, context.seed, context.device, context.progress)


def _site(context: StageContext, site: str) -> WorkerSpec:
    settings = context.stage.settings
    return WorkerSpec(
        "federated.dsl.site:DslSite",
        {
            "slices": str(context.inputs[f"slices:{site}"]),
            "prepared": str(context.inputs[f"prepare:{site}"]),
            "planned": str(context.inputs[f"plan:{site}"]),
            "settings": settings["dsl"],
            "seed": settings["seeds"][site],
            "device": context.device,
            "out": str(context.out / "sites" / site),
        },
    )
