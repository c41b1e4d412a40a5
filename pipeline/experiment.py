"""From a configuration to the stage graph of the main experiment: what is done, from what, with which settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.seeds import derive_seed
from common.settings import to_dict
from pipeline.config import ExperimentConfig
from pipeline.generators import find_generator
from pipeline.graph import Graph, Resources, Stage

ALL = "all"

# Expected durations in seconds on one slow core, for the order of stages and the time left only.
ITERATION_S = 0.1  # of nnU-Net
GENERATOR_STEP_S = 0.2
OTHER_STAGE_S = 5.0

CODE = {
    "prepare": ("dataset", "pipeline/stages/prepare.py"),
    "plan": ("nnunetv2_mod", "pipeline/stages/prepare.py"),
    "slices": ("dataset", "nnunetv2_mod", "pipeline/stages/prepare.py"),
    "calibrate": ("memorization", "pipeline/stages/synthesise.py"),
    "generator": ("pipeline/generators.py", "pipeline/stages/synthesise.py"),
    "sample": ("pipeline/generators.py", "pipeline/stages/synthesise.py"),
    "filter": ("memorization", "pipeline/stages/synthesise.py"),
    "segment_real": ("nnunetv2_mod", "pipeline/stages/segment.py"),
    "label": ("nnunetv2_mod", "dataset/slices.py", "pipeline/stages/segment.py"),
    "share": ("sharing", "dataset/slices.py", "pipeline/stages/exchange.py"),
    "merge": ("sharing", "nnunetv2_mod", "pipeline/stages/exchange.py"),
    "segment_syn": ("nnunetv2_mod", "pipeline/stages/segment.py"),
    "finetune": ("nnunetv2_mod", "pipeline/stages/segment.py"),
    "evaluate": ("nnunetv2_mod", "evaluation/segmentation.py", "evaluation/results.py", "pipeline/stages/score.py"),
}

FUNCTION = {
    "prepare": "prepare:prepare",
    "plan": "prepare:plan",
    "slices": "prepare:slices",
    "calibrate": "synthesise:calibrate_threshold",
    "generator": "synthesise:train_generator",
    "sample": "synthesise:sample",
    "filter": "synthesise:filter_copies",
    "segment_real": "segment:train_segmentation",
    "label": "segment:label",
    "share": "exchange:share",
    "merge": "exchange:merge",
    "segment_syn": "segment:train_segmentation",
    "finetune": "segment:fine_tune",
    "evaluate": "score:evaluate",
}
TRAININGS = ("generator", "segment_real", "segment_syn", "finetune")
EMBEDDINGS = ("calibrate", "sample", "filter", "label", "evaluate")


@dataclass(frozen=True)
class TrainedModel:
    """A network that is evaluated: its name in the tables, where it was trained, and the stage that made it."""

    name: str
    trained_on: str
    stage_id: str


def build_graph(config: ExperimentConfig, sites: Sequence[str]) -> Graph:
    """The stages of all folds of an experiment over ``sites``, without those that ``skip`` takes out."""
    stages = [stage for fold in config.folds for stage in _FoldBuilder(config, tuple(sites), fold).stages()]
    return Graph({stage.id: stage for stage in stages})


@dataclass(frozen=True)
class _FoldBuilder:
    config: ExperimentConfig
    sites: tuple[str, ...]
    fold: int

    def stages(self) -> Iterator[Stage]:
        for site in self.sites:
            yield from self._real(site)
            yield from self._synthetic(site)
        if self.config.evaluation.real_all:
            yield from self._pooled_real()
        yield from self._merged()
        for model in self._models():
            for site in self.sites:
                yield self._evaluate(model, site)

    def _real(self, site: str) -> Iterator[Stage]:
        config = self.config
        yield self._stage(
            "prepare",
            site,
            {
                "source": _portable(to_dict(config.source)),
                "fold_seed": derive_seed(config.general.seed_base, "folds", site),
                "dataset_name": self._dataset_name(site),
            },
            {},
            environment={"root": config.source.root, "data": str(config.data_dir)},
        )
        yield self._stage("plan", site, {"plan": to_dict(config.plan)}, {"prepare": site})
        yield self._stage("segment_real", site, {"train": to_dict(config.train.segmentation())}, {"plan": site})

    def _synthetic(self, site: str) -> Iterator[Stage]:
        config = self.config
        generator = find_generator(config.generator.name)
        settings = generator.check(config.generator.settings)
        named = {"name": config.generator.name, "settings": settings, "train_on": config.generator.train_on}
        mirrored = {"auto": generator.sees_mirrored(settings), "always": True, "never": False}
        memorization = {
            "memorization": to_dict(config.memorization),
            "train_on": config.generator.train_on,
            "mirrored": mirrored[config.memorization.mirror],
        }
        distance = {"min_slice_distance_mm": config.data.min_slice_distance_mm}
        sampling = {"name": config.generator.name, **to_dict(config.generate)}
        sharing = {**distance, "stack_size": config.label.stack_size}
        code = (generator.package,)
        yield self._stage("slices", site, distance, {"prepare": site, "plan": site})
        yield self._stage("calibrate", site, memorization, {"slices": site})
        yield self._stage(
            "generator", site, {**named, "kimg": config.train.gan.kimg}, {"slices": site, "plan": site}, code
        )
        yield self._stage("sample", site, sampling, {"generator": site, "slices": site}, code)
        yield self._stage("filter", site, memorization, {"sample": site, "slices": site, "calibrate": site})
        yield self._stage(
            "label", site, {"batch_size": config.label.batch_size}, {"filter": site, "segment_real": site}
        )
        yield self._stage(
            "share", site, sharing, {"filter": site, "label": site, "plan": site, "prepare": site, "generator": site}
        )
        if config.evaluation.per_site_synthetic:
            yield self._merge(site, (site,))
            yield self._stage(
                "segment_syn", site, {"train": to_dict(config.train.segmentation())}, {"plan": ("merge", site)}
            )

    def _pooled_real(self) -> Iterator[Stage]:
        inputs = {f"prepare:{site}": ("prepare", site) for site in self.sites}
        yield self._stage(
            "prepare", ALL, {"dataset_name": self._dataset_name(ALL)}, inputs, function="prepare:prepare_all"
        )
        yield self._stage("plan", ALL, {"plan": to_dict(self.config.plan)}, {"prepare": ALL})
        yield self._stage("segment_real", ALL, {"train": to_dict(self.config.train.segmentation())}, {"plan": ALL})

    def _merged(self) -> Iterator[Stage]:
        yield self._merge(ALL, self.sites)
        yield self._stage(
            "segment_syn", ALL, {"train": to_dict(self.config.train.segmentation())}, {"plan": ("merge", ALL)}
        )
        for site in self.sites:
            yield self._stage(
                "finetune",
                site,
                {"train": to_dict(self.config.train.fine_tuning())},
                {"prepare": site, "segment_syn": ("segment_syn", ALL)},
            )

    def _merge(self, name: str, sites: tuple[str, ...]) -> Stage:
        inputs: dict[str, Any] = {f"package:{site}": ("share", site) for site in sites}
        if self.config.merge.plan_from == "real_all":
            inputs["plan_all"] = ("plan", ALL)
        settings = {
            **to_dict(self.config.merge),
            "plan": to_dict(self.config.plan),
            "dataset_name": self._dataset_name(f"syn_{name}"),
        }
        return self._stage("merge", name, settings, inputs)

    def _models(self) -> Iterator[TrainedModel]:
        for site in (*self.sites, ALL) if self.config.evaluation.real_all else self.sites:
            yield TrainedModel(f"real-{site}", site, self._id("segment_real", site))
        synthetic = (*self.sites, ALL) if self.config.evaluation.per_site_synthetic else (ALL,)
        for site in synthetic:
            yield TrainedModel(f"syn-{site}", site, self._id("segment_syn", site))
        for site in self.sites:
            yield TrainedModel(f"syn-real-{site}", site, self._id("finetune", site))

    def _evaluate(self, model: TrainedModel, site: str) -> Stage:
        settings = {
            "model": model.name,
            "trained_on": model.trained_on,
            "nsd_tolerance": self.config.evaluation.nsd_tolerance,
        }
        stage = self._stage("evaluate", site, settings, {"prepare": site})
        return dataclasses.replace(stage, part=model.name, inputs={**stage.inputs, "model": model.stage_id})

    def _stage(
        self,
        name: str,
        site: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        code: tuple[str, ...] = (),
        function: str | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> Stage:
        """A stage; an input is a site (of the stage the role names), or (stage, site)."""
        sources = {
            role: self._id(role, source) if isinstance(source, str) else self._id(*source)
            for role, source in inputs.items()
        }
        cluster = self.config.cluster
        kind = "train" if name in TRAININGS else "embed" if name in EMBEDDINGS else "light"
        return Stage(
            name=name,
            fold=self.fold,
            site=site,
            function=f"pipeline.stages.{function or FUNCTION[name]}",
            settings=settings,
            inputs=sources,
            seed=derive_seed(self.config.general.seed_base, "fold", self.fold, site, name),
            resources=Resources(getattr(cluster.cpus, kind), getattr(cluster.gpus, kind)),
            private_to=site if site in self.sites and name not in ("merge", "segment_syn") else None,
            code=(*CODE[name], *code, "common"),
            cost=self._cost_s(name),
            leaves_site=name == "share",
            resumable=name in TRAININGS,
            environment=environment or {},
        )

    def _cost_s(self, name: str) -> float:
        """Rough, but of the right order: a schedule of wrong durations is a wrong schedule."""
        train = self.config.train
        settings = train.fine_tuning() if name == "finetune" else train.segmentation()
        network_s = ITERATION_S * settings.n_epochs * settings.n_iterations
        if name != "generator":
            return OTHER_STAGE_S + (network_s if name in TRAININGS else 0.0)
        if isinstance(train.gan.kimg, str):
            return OTHER_STAGE_S + network_s  # its length is not known before the data is read
        batch_size = float(self.config.generator.settings.get("batch_size", 8))
        return OTHER_STAGE_S + GENERATOR_STEP_S * train.gan.kimg * 1000 / batch_size

    def _id(self, name: str, site: str) -> str:
        return f"fold_{self.fold}/{name}/{site}"

    def _dataset_name(self, name: str) -> str:
        names = [*self.sites, ALL, *(f"syn_{site}" for site in (*self.sites, ALL))]
        words = re.sub(r"\W", "_", f"{self.config.data.dataset_descriptor}_{name}")
        return f"Dataset{100 + names.index(name)}_{words}"


def _portable(source: dict[str, Any]) -> dict[str, Any]:
    """The source without its place on this machine, which is no part of a result's identity."""
    return {key: value for key, value in source.items() if key != "root"}


def planned_sites(config: ExperimentConfig, found: Sequence[str]) -> tuple[str, ...]:
    """The sites of the experiment: those the configuration names, or those found in the data."""
    return tuple(config.data.sites or found)
