"""How a stage of an outer fold is made: its function, code, seed, resources and expected duration, by its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.seeds import derive_seed
from engine.graph import Resources, Stage, count_workers
from pipeline.config import ExperimentConfig

ALL = "all"

# Expected durations in seconds on one slow core, for the order of stages and the time left only.
ITERATION_S = 0.1  # of nnU-Net
GENERATOR_STEP_S = 0.2
USUAL_BATCH = 8  # where the machine will choose it
OTHER_STAGE_S = 5.0

DSL_ROOMS = ("gan", "memorization", "features/fidelity.py")
SCHEMA_FILES = (
    *("gan/settings.py", "diffusion/settings.py", "memorization/gates.py", "memorization/leakage/metrics.py"),
    *("common/resampling.py", "memorization/site_audit.py"),
)
CODE = {
    "prepare": ("dataset", "pipeline/stages/prepare.py"),
    "plan": ("nnunetv2_mod", "pipeline/stages/prepare.py"),
    "slices": ("dataset", "nnunetv2_mod", "pipeline/stages/prepare.py"),
    "calibrate": ("memorization", "pipeline/stages/synthesise.py"),
    "generator": (
        *("generators/registry.py", "features/fidelity_monitor.py", "pipeline/stages/synthesise.py"),
        *("features/embedders.py", "features/index.py"),
        "features/fidelity.py",
    ),
    "sample": ("generators/registry.py", "pipeline/stages/synthesise.py"),
    "filter": (*("memorization", "generators/registry.py", "pipeline/stages/synthesise.py"),),
    "audit": (
        *("memorization", "features/fidelity.py"),
        *("pipeline/stages/audit.py", "pipeline/stages/synthesise.py"),
    ),
    "segment_real": ("nnunetv2_mod", "pipeline/stages/segment.py"),
    "label": ("nnunetv2_mod", "dataset/slices.py", "pipeline/stages/segment.py"),
    "share": ("sharing", *SCHEMA_FILES, "dataset/slices.py", "pipeline/stages/exchange.py"),
    "check": (
        *("sharing", "gan/settings.py", "diffusion/settings.py", "memorization", "dataset"),
        *("pipeline/stages/check.py", "pipeline/stages/exchange.py"),
    ),
    "merge": ("sharing", *SCHEMA_FILES, "nnunetv2_mod", "pipeline/stages/exchange.py"),
    "segment_syn": ("nnunetv2_mod", "pipeline/stages/segment.py"),
    "finetune": ("nnunetv2_mod", "pipeline/stages/segment.py"),
    "statistics": ("nnunetv2_mod", "pipeline/stages/federate.py"),
    "negotiate": ("nnunetv2_mod", "pipeline/stages/federate.py"),
    "adopt": ("nnunetv2_mod", "pipeline/stages/federate.py"),
    "rounds": ("federated", "nnunetv2_mod", "pipeline/stages/federate.py"),
    "dsl": ("federated", "dataset", *DSL_ROOMS, "nnunetv2_mod", "pipeline/stages/distribute.py"),
    "dsl_dataset": ("federated", *DSL_ROOMS, "sharing", "dataset", "nnunetv2_mod", "pipeline/stages"),
    "segment_dsl": ("nnunetv2_mod", "pipeline/stages/segment.py"),
    "evaluate": ("nnunetv2_mod", "evaluation/segmentation.py", "evaluation/results.py", "pipeline/stages/score.py"),
}
LABEL_MAPS = ("dataset/label_maps.py",)  # what slices also depend on where the generator makes labels too,
LABEL_COMPARISON = (  # and what labelling does
    *("evaluation/label_agreement.py", "evaluation/report/label_pictures.py", "evaluation/report/pictures.py"),
    "evaluation/statistics.py",
)

FUNCTION = {
    "prepare": "prepare:prepare",
    "plan": "prepare:plan",
    "slices": "prepare:slices",
    "calibrate": "synthesise:calibrate_threshold",
    "generator": "synthesise:train_generator",
    "sample": "synthesise:sample",
    "filter": "synthesise:filter_copies",
    "audit": "audit:audit_site",
    "segment_real": "segment:train_segmentation",
    "label": "segment:label",
    "share": "exchange:share",
    "check": "check:check_package",
    "merge": "exchange:merge",
    "segment_syn": "segment:train_segmentation",
    "finetune": "segment:fine_tune",
    "statistics": "federate:tell_statistics",
    "negotiate": "federate:negotiate",
    "adopt": "federate:adopt",
    "rounds": "federate:train_in_rounds",
    "dsl": "distribute:train",
    "dsl_dataset": "distribute:make_dataset",
    "segment_dsl": "segment:train_segmentation",
    "evaluate": "score:evaluate",
}
TRAININGS = ("generator", "segment_real", "segment_syn", "finetune", "rounds", "dsl", "segment_dsl")
EMBEDDINGS = ("calibrate", "sample", "filter", "audit", "label", "check", "dsl_dataset", "evaluate")
ACROSS_SITES = ("merge", "segment_syn")  # made of packages: private to no site, whatever their name


@dataclass(frozen=True)
class TrainedModel:
    """A network that is evaluated: its name in the tables, where it was trained, its stage and its folder in there."""

    name: str
    trained_on: str
    stage: tuple[str, str]  # stage, site
    folder: str = "model"


@dataclass(frozen=True)
class StageFactory:
    """Makes the stages of one fold of an experiment over ``sites``."""

    config: ExperimentConfig
    sites: tuple[str, ...]
    fold: int

    def stage(
        self,
        kind: str,
        site: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str | tuple[str, str]],
        *,
        name: str | None = None,
        part: str = "",
        members: tuple[str, ...] = (),
        hub_works: bool = False,
        code: tuple[str, ...] = (),
        function: str | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> Stage:
        """A stage.

        Args:
            kind: what it does (``FUNCTION``); ``name`` where several of a kind stand side by side.
            inputs: role -> the site (of the stage the role names), or (stage, site).
            members: sites that take part with a worker each; its resources are then those of all workers, and of one
                more where the hub computes too (``hub_works``).
        """
        cluster = self.config.cluster
        use = "train" if kind in TRAININGS else "embed" if kind in EMBEDDINGS else "light"
        n_workers = count_workers(members, hub_works=hub_works)
        return Stage(
            name=name or kind,
            fold=self.fold,
            site=site,
            function=f"pipeline.stages.{function or FUNCTION[kind]}",
            settings=settings,
            inputs={role: self._source(role, source) for role, source in inputs.items()},
            part=part,
            seed=self.seed(name or kind, site),
            resources=Resources(getattr(cluster.cpus, use) * n_workers, getattr(cluster.gpus, use) * n_workers),
            members=members,
            hub_works=hub_works,
            private_to=site if site in self.sites and kind not in ACROSS_SITES else None,
            code=(*CODE[kind], *code, "common"),
            cost=self._cost_s(kind),
            leaves_site=kind in ("share", "check"),
            resumable=kind in TRAININGS,
            environment=environment or {},
        )

    def seed(self, name: str, site: str) -> int:
        """The seed of a stage."""
        return derive_seed(self.config.general.seed_base, "fold", self.fold, site, name)

    def stage_id(self, name: str, site: str) -> str:
        """The id of a stage without a part."""
        return f"fold_{self.fold}/{name}/{site}"

    def dataset_name(self, name: str) -> str:
        """nnU-Net's name of the dataset of a site, of ``all``, of ``syn_<union>`` or of ``dsl``: ids from 100."""
        unions = (*self.sites, ALL)
        names = [*unions, *(f"syn_{union}" for union in unions), "dsl"]
        names += [f"syn_{union.name}" for union in self.config.scaling.named_unions(self.sites)]
        words = re.sub(r"\W", "_", f"{self.config.data.dataset_descriptor}_{name}")
        return f"Dataset{100 + names.index(name)}_{words}"

    def _source(self, role: str, source: str | tuple[str, str]) -> str:
        return self.stage_id(role, source) if isinstance(source, str) else self.stage_id(*source)

    def _cost_s(self, kind: str) -> float:
        """Rough, but of the right order: a schedule of wrong durations is a wrong schedule."""
        train = self.config.train
        settings = train.fine_tuning() if kind == "finetune" else train.segmentation()
        network_s = ITERATION_S * settings.n_epochs * settings.n_iterations
        if kind != "generator":
            return OTHER_STAGE_S + (network_s if kind in TRAININGS else 0.0)
        if isinstance(train.gan.kimg, str):
            return OTHER_STAGE_S + network_s  # its length is not known before the data is read
        named = self.config.generator.settings.get("batch_size", USUAL_BATCH)
        batch_size = float(USUAL_BATCH if named == "auto" else named)
        return OTHER_STAGE_S + GENERATOR_STEP_S * train.gan.kimg * 1000 / batch_size
