"""How a stage of an outer fold is made: its function, code, seed, resources and expected duration, by its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.seeds import derive_seed
from engine.graph import Resources, Stage, count_workers
from pipeline.config import DSL, ExperimentConfig

ALL = "all"
Source = str | tuple[str, str]
"""Of an input: the site of the stage that its role names, or stage and site."""

# Expected durations in seconds on one slow core, for the order of stages and the time left only.
ITERATION_S = 0.1  # of nnU-Net
OTHER_STAGE_S = 5.0


@dataclass(frozen=True)
class Kind:
    """What a kind of stage does, and which of the cluster's resources it asks for."""

    function: str  # module and function in ``pipeline.stages``
    use: str = "light"  # or embed, train: a field of ``StageResources``


KINDS = {
    "prepare": Kind("prepare:prepare"),
    "prepare_all": Kind("prepare_all:prepare_all"),
    "plan": Kind("plan:plan"),
    "subgroups": Kind("subgroups:find_subgroups"),
    "slices": Kind("slices:slices"),
    "calibrate": Kind("calibrate:calibrate_threshold", "embed"),
    "generator": Kind("generator:train_generator", "train"),
    "sample": Kind("sample:sample", "embed"),
    "filter": Kind("filter:filter_copies", "embed"),
    "audit": Kind("audit:audit_site", "embed"),
    "segment_real": Kind("segment:train_segmentation", "train"),
    "segment_long": Kind("segment:train_segmentation", "train"),
    "label": Kind("label:label", "embed"),
    "share": Kind("share:share"),
    "check": Kind("check:check_package", "embed"),
    "merge": Kind("merge:merge"),
    "segment_syn": Kind("segment:train_segmentation", "train"),
    "finetune": Kind("finetune:fine_tune", "train"),
    "statistics": Kind("statistics:tell_statistics"),
    "negotiate": Kind("negotiate:negotiate"),
    "adopt": Kind("adopt:adopt"),
    "rounds": Kind("rounds:train_in_rounds", "train"),
    "dsl": Kind("dsl:train", "train"),
    "dsl_dataset": Kind("dsl_dataset:make_dataset", "embed"),
    "segment_dsl": Kind("segment:train_segmentation", "train"),
    "evaluate": Kind("evaluate:evaluate", "embed"),
}
NNUNET_TRAININGS = {"segment_real", "segment_long", "segment_syn", "finetune", "segment_dsl"}
OF_A_NETWORK = {*NNUNET_TRAININGS, "rounds", "evaluate"}
SEED_ENDING = ".seed"  # with a number: the name of a stage that is repeated with another seed
ACROSS_SITES = ("merge", "segment_syn")  # made of packages: private to no site, whatever their name


@dataclass(frozen=True)
class TrainedModel:
    """A network that is evaluated: its name in the tables, where it was trained, its stage and its folder in there."""

    name: str
    trained_on: str
    stage: tuple[str, str]  # stage, site
    folder: str = "model"


def base_name(name: str) -> str:
    """The name of a stage without the number of its seed."""
    return name.partition(SEED_ENDING)[0]


@dataclass(frozen=True)
class StageFactory:
    """Makes the stages of one fold of an experiment over ``sites``.

    ``repeat``: the trainings of networks, and what is measured of them, are repeated with other seeds; 0 is the first
    one, whose stages have no number in their names. What is not repeated is the same stage for all.
    """

    config: ExperimentConfig
    sites: tuple[str, ...]
    fold: int
    repeat: int = 0

    def stage(
        self,
        kind: str,
        site: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Source],
        *,
        name: str | None = None,
        part: str = "",
        members: tuple[str, ...] = (),
        hub_works: bool = False,
        code: tuple[str, ...] = (),
        environment: Mapping[str, Any] | None = None,
    ) -> Stage:
        """A stage.

        Args:
            kind: what it does (``KINDS``); ``name`` where its stages have another name than the kind.
            inputs: role -> the site (of the stage the role names), or (stage, site).
            members: sites that take part with a worker each; its resources are then those of all workers, and of one
                more where the hub computes too (``hub_works``).
        """
        cluster = self.config.cluster
        what = KINDS[kind]
        name = self._numbered(name or kind)
        if kind in NNUNET_TRAININGS and self.config.train.retry_failed:
            settings = {**settings, "retry_failed": True}
        n_workers = count_workers(members, hub_works=hub_works)
        return Stage(
            name=name,
            fold=self.fold,
            site=site,
            function=f"pipeline.stages.{what.function}",
            settings=settings,
            inputs={role: self._source(role, source) for role, source in inputs.items()},
            part=part,
            seed=self.seed(name, site),
            resources=Resources(*(getattr(asked, what.use) * n_workers for asked in (cluster.cpus, cluster.gpus))),
            members=members,
            hub_works=hub_works,
            private_to=site if site in self._with_test_sites and kind not in ACROSS_SITES else None,
            code=code,
            cost=self._cost_s(kind),
            leaves_site=kind in ("share", "check"),
            is_training=what.use == "train",
            environment=environment or {},
        )

    @property
    def _with_test_sites(self) -> tuple[str, ...]:
        return (*self.sites, *self.config.data.test_sites)

    def seed(self, name: str, site: str) -> int:
        """The seed of a stage."""
        return derive_seed(self.config.general.seed_base, "fold", self.fold, site, name)

    def _numbered(self, name: str) -> str:
        is_repeated = name in OF_A_NETWORK or name.startswith("finetune_") or name in self.config.federated.strategies
        return f"{name}{SEED_ENDING}{self.repeat}" if self.repeat and is_repeated and name != DSL else name

    def dataset_name(self, name: str) -> str:
        """nnU-Net's name of the dataset of a site, of ``all``, of ``syn_<union>`` or of ``dsl``: ids from 100."""
        unions = (*self.sites, ALL)
        names = [*unions, *(f"syn_{union}" for union in unions), "dsl"]
        names += [f"syn_{union.name}" for union in self.config.scaling.named_unions(self.sites)]
        names += self.config.data.test_sites
        words = re.sub(r"\W", "_", f"{self.config.data.dataset_descriptor}_{name}")
        return f"Dataset{100 + names.index(name)}_{words}"

    def _source(self, role: str, source: Source) -> str:
        name, site = (role, source) if isinstance(source, str) else source
        return f"fold_{self.fold}/{self._numbered(name)}/{site}"

    def _cost_s(self, kind: str) -> float:
        """Rough, but of the right order: a schedule of wrong durations is a wrong schedule."""
        train = self.config.train
        lengths = {"finetune": train.fine_tuning(), "segment_long": train.from_scratch_as_long()}
        settings = lengths.get(kind, train.segmentation())
        network_s = ITERATION_S * settings.n_epochs * settings.n_iterations
        if kind != "generator":
            return OTHER_STAGE_S + (network_s if KINDS[kind].use == "train" else 0.0)
        if isinstance(train.gan.kimg, str):
            return OTHER_STAGE_S + network_s  # its length is not known before the data is read
        generator = self.config.generator
        return OTHER_STAGE_S + generator.backend.seconds_per_kimg(generator.settings) * train.gan.kimg
