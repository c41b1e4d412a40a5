"""An experiment that no file of the product knows: it adds numbers that its sites draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.files import read_json, write_text
from common.seeds import derive_seed
from engine.graph import Graph, Stage
from evaluation.report.run import RunFiles
from evaluation.report.sections import IDENTITY, TIME, Section
from pipeline.config import RunConfig
from pipeline.experiments import Experiment
from pipeline.site_data import SiteData


@dataclass(frozen=True)
class ToyConfig(RunConfig):
    n_numbers: int = 3
    sites: tuple[str, ...] = ("A", "B")


def check(config: ToyConfig) -> ToyConfig:
    if config.n_numbers < 1:
        raise InputError(f"{config.n_numbers} numbers cannot be added", where="n_numbers", fix="use 1 or more")
    return config


def build_graph(config: ToyConfig, sites: Sequence[str]) -> Graph:
    stages = [
        Stage(
            name="draw",
            fold=0,
            site=site,
            function="support.toy_experiment.stages:draw",
            settings={"n_numbers": config.n_numbers},
            inputs={},
            seed=derive_seed(config.general.seed_base, "draw", site),
            private_to=site,
        )
        for site in sites
    ]
    inputs = {f"numbers:{stage.site}": stage.id for stage in stages}
    stages.append(Stage("add", 0, "all", "support.toy_experiment.stages:add", {}, inputs))
    return Graph({stage.id: stage for stage in stages})


def write_results(folder: Path, finished: Mapping[str, Path]) -> None:
    if "fold_0/add/all" in finished:
        write_text(folder / "summary.txt", f"total {read_json(finished['fold_0/add/all'] / 'total.json')['total']}\n")


def totals_section(files: RunFiles) -> str | None:
    folders = files.stage_folders("add")
    return f"The sites' numbers add up to {read_json(folders[0].path / 'total.json')['total']}." if folders else None


TOY = Experiment(
    name="toy",
    imported_as="support.toy_experiment:TOY",
    config_folder=Path(__file__).parent / "config",
    config_type=ToyConfig,
    build_graph=build_graph,
    report_sections=(Section("totals", "Totals of the toy", totals_section), TIME, IDENTITY),
    check=check,
    read_sites=lambda config: SiteData(config.sites),
    describe=lambda config, data: [f"{config.n_numbers} numbers each of {len(data.sites)} sites"],
    write_results=write_results,
)
