"""From a configuration to its stage graph: the main experiment, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

from common.errors import InputError
from common.seeds import derive_seed
from common.settings import to_dict
from engine.graph import Graph, Stage
from generators.interface import GeneratorBackend
from pipeline.baselines import federated_models, federated_stages
from pipeline.config import DSL, ExperimentConfig
from pipeline.stage_factory import ALL, Source, StageFactory, TrainedModel
from pipeline.unions import Union


def build_graph(config: ExperimentConfig, sites: Sequence[str]) -> Graph:
    """The stages of all folds of an experiment over ``sites``."""
    found: dict[str, Stage] = {}
    for fold in config.folds:
        for repeat in range(config.general.n_seeds):
            builder = _FoldBuilder(config, tuple(sites), fold, repeat)
            stages = {stage.id: stage for stage in _once(builder.stages())}
            found = stages | found  # stages that are not repeated are the same in every repeat
    return Graph(found)


def _once(stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages, none of them twice.

    Raises:
        InputError: two models would have one name, such as ``real-long-A`` of the sites ``A`` and ``long-A``.
    """
    ids = set()
    for stage in stages:
        if stage.id in ids:
            fix = "give the sites names that do not begin with the name of a kind of model, such as 'long-' or 'real-'"
            raise InputError("two stages have the same name", where=stage.id, fix=fix)
        ids.add(stage.id)
        yield stage


@dataclass(frozen=True)
class _FoldBuilder(StageFactory):
    @property
    def unions(self) -> tuple[Union, ...]:
        """Sites that share with each other: all of them, and those of the scaling study."""
        return (Union(ALL, self.sites), *self.config.scaling.named_unions(self.sites))

    def stages(self) -> Iterator[Stage]:
        config = self.config
        for site in self.sites:
            yield from self._real(site)
            if config.evaluation.synthetic:
                yield from self._synthetic(site)
            elif DSL in config.federated.strategies:
                yield self._slices(site)
        if config.evaluation.real_all:
            yield from self._pooled_real()
        if config.evaluation.synthetic:
            if config.merge.cross_site_check:
                yield from self._checks()
            for union in self.unions:
                yield from self._shared(union)
        yield from federated_stages(self)
        tested = (*self.sites, *config.data.test_sites)
        for site in config.data.test_sites:
            yield self._prepare(site, {"is_only_tested": True})
        if config.data.subgroup_columns:
            for site in tested:
                columns = {**self._source_settings, "columns": list(config.data.subgroup_columns)}
                yield self.stage("subgroups", site, columns, {"prepare": site}, environment=self._places)
        for model in self._models():
            for site in tested:
                yield self._evaluate(model, site)

    @property
    def _source_settings(self) -> dict[str, Any]:
        # without its place on this machine, which is no part of a result's identity
        return {"source": {key: value for key, value in to_dict(self.config.source).items() if key != "root"}}

    @property
    def _places(self) -> dict[str, Any]:
        return {"root": self.config.source.root, "data": str(self.config.data_dir)}

    def _prepare(self, site: str, further: Mapping[str, Any]) -> Stage:
        settings = {
            **self._source_settings,
            "fold_seed": derive_seed(self.config.general.seed_base, "folds", site),
            "dataset_name": self.dataset_name(site),
            **further,
        }
        return self.stage("prepare", site, settings, {}, environment=self._places)

    def _real(self, site: str) -> Iterator[Stage]:
        yield self._prepare(site, {})
        yield self.stage("plan", site, {"plan": to_dict(self.config.plan)}, {"prepare": site})
        yield from self._real_networks(site)

    def _real_networks(self, name: str) -> Iterator[Stage]:
        """On real images of one site or of all: of the normal length, and as long as autoshare trains in all."""
        yield self.stage("segment_real", name, self._from_scratch, {"plan": name})
        if self._has_long:
            long = {"train": to_dict(self.config.train.from_scratch_as_long())}
            yield self.stage("segment_long", name, long, {"plan": name})

    @property
    def _has_long(self) -> bool:
        """Whether there is something whose length must be matched."""
        return self.config.evaluation.real_long and self.config.evaluation.synthetic

    @property
    def _from_scratch(self) -> dict[str, Any]:
        """Settings of a training of nnU-Net that starts from random weights."""
        return {"train": to_dict(self.config.train.segmentation())}

    def _slices(self, site: str) -> Stage:
        distance = {"min_slice_distance_mm": self.config.data.min_slice_distance_mm}
        return self.stage("slices", site, {**distance, **self._labels()}, {"prepare": site, "plan": site})

    @cached_property
    def _generator(self) -> tuple[GeneratorBackend, Mapping[str, Any]]:
        """The generator and its complete settings."""
        backend = self.config.generator.backend
        return backend, backend.check(self.config.generator.settings)

    def _labels(self) -> dict[str, Any]:
        """The labels, for stages that handle masks beside images; only if the generator makes masks too."""
        if not self.config.evaluation.synthetic:
            return {}
        backend, settings = self._generator
        return {"labels": dict(self.config.source.labels)} if backend.makes_masks(settings) else {}

    def _synthetic(self, site: str) -> Iterator[Stage]:
        config = self.config
        generator, settings = self._generator
        of_generator = {"name": config.generator.name}
        if not config.generator.is_built_in:
            of_generator["adapter"] = config.generator.adapter_path  # its name alone does not lead to it
        labels, train_on = self._labels(), {"train_on": config.generator.train_on}
        training = {**of_generator, "settings": settings, **train_on, "kimg": config.train.gan.kimg, **labels}
        mirrored = {"auto": generator.sees_mirrored(settings), "always": True, "never": False}
        memorization = {
            "memorization": to_dict(config.memorization),
            **train_on,
            "mirrored": mirrored[config.memorization.mirror],
        }
        sampling = {**of_generator, "batch_size": config.generate.batch_size, **labels}
        replacing = {
            **sampling,
            "max_sampled_factor": config.generate.max_sampled_factor,
            "seed": self.seed("sample", site),  # replacements go on where the sample stage ended
        }
        labelling = {"batch_size": config.label.batch_size, **labels}
        if labels:
            labelling["shared"] = config.label.source
        sharing = {"min_slice_distance_mm": config.data.min_slice_distance_mm, "stack_size": config.label.stack_size}
        yield self._slices(site)
        # name and settings of each stage, the stages of this site that it reads, and whether it runs the generator
        for name, of_stage, read, generates in (
            ("calibrate", memorization, ("slices",), False),
            ("generator", training, ("slices", "plan"), True),
            ("sample", {**sampling, "n_images": config.generate.n_images}, ("generator", "slices"), True),
            ("filter", {**memorization, "sampling": replacing}, ("sample", "slices", "calibrate", "generator"), True),
            ("audit", {**memorization, "gates": to_dict(config.gates)}, ("slices", "calibrate", "filter"), False),
            ("label", labelling, ("filter", "segment_real"), False),
            ("share", sharing, ("filter", "audit", "label", "plan", "prepare", "generator"), False),
        ):
            code = (config.generator.adapter_path,) if generates else ()
            yield self.stage(name, site, of_stage, dict.fromkeys(read, site), code=code)
        if config.evaluation.per_site_synthetic:
            yield from self._pooled_synthetic(Union(site, (site,)))

    def _pooled_real(self) -> Iterator[Stage]:
        inputs = {f"prepare:{site}": ("prepare", site) for site in self.sites}
        name = {"dataset_name": self.dataset_name(ALL)}
        yield self.stage("prepare_all", ALL, name, inputs, name="prepare")
        yield self.stage("plan", ALL, {"plan": to_dict(self.config.plan)}, {"prepare": ALL})
        yield from self._real_networks(ALL)

    def _shared(self, union: Union) -> Iterator[Stage]:
        """What a union's packages become, and what every site makes of it, also one that is not of the union."""
        yield from self._pooled_synthetic(union)
        settings = {"train": to_dict(self.config.train.fine_tuning())}
        for site in self.sites:
            inputs: dict[str, Source] = {"prepare": site, "segment_syn": ("segment_syn", union.name)}
            yield self.stage("finetune", site, settings, inputs, name=_finetune_name(union))

    def _pooled_synthetic(self, union: Union) -> Iterator[Stage]:
        yield self._merge(union)
        yield self.stage("segment_syn", union.name, self._from_scratch, {"plan": ("merge", union.name)})

    def _checks(self) -> Iterator[Stage]:
        """Every site on every other's package, once that is there: a union's merge waits for its own sites only."""
        for site, other in permutations(self.sites, 2):
            settings = {"memorization": to_dict(self.config.memorization), "package_of": other}
            inputs: dict[str, Source] = {"package": ("share", other), "calibrate": site, "slices": site, "plan": site}
            yield self.stage("check", site, settings, inputs, part=other)

    def _merge(self, union: Union) -> Stage:
        inputs = {f"package:{site}": ("share", site) for site in union.sites}
        if self.config.merge.cross_site_check:
            for site, other in permutations(union.sites, 2):
                inputs[f"check:{site}:{other}"] = ("check", f"{site}/{other}")
        if self.config.merge.plan_from == "real_all":
            inputs["plan_all"] = ("plan", ALL)
        settings = {
            **to_dict(self.config.merge),
            "plan": to_dict(self.config.plan),
            "dataset_name": self.dataset_name(f"syn_{union.name}"),
        }
        return self.stage("merge", union.name, settings, inputs)

    def _models(self) -> Iterator[TrainedModel]:
        evaluation = self.config.evaluation
        for site in (*self.sites, ALL) if evaluation.real_all else self.sites:
            yield TrainedModel(f"real-{site}", site, ("segment_real", site))
            if self._has_long:
                yield TrainedModel(f"real-long-{site}", site, ("segment_long", site))
        if evaluation.synthetic:
            yield from self._synthetic_models()
        yield from federated_models(self)

    def _synthetic_models(self) -> Iterator[TrainedModel]:
        names = [union.name for union in self.unions]
        for name in (*self.sites, *names) if self.config.evaluation.per_site_synthetic else names:
            yield TrainedModel(f"syn-{name}", name, ("segment_syn", name))
        for union in self.unions:
            family = "syn-real" if union.name == ALL else f"syn{union.name}-real"
            for site in self.sites:
                yield TrainedModel(f"{family}-{site}", site, (_finetune_name(union), site))

    def _evaluate(self, model: TrainedModel, site: str) -> Stage:
        settings = {
            "model": model.name,
            "trained_on": model.trained_on,
            "model_folder": model.folder,
            "seed": self.repeat,
            "nsd_tolerance": self.config.evaluation.nsd_tolerance,
        }
        return self.stage("evaluate", site, settings, {"prepare": site, "model": model.stage}, part=model.name)


def _finetune_name(union: Union) -> str:
    return "finetune" if union.name == ALL else f"finetune_{union.name}"
