"""The typed configuration of an experiment; every YAML under ``config/`` mirrors these dataclasses one to one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError
from common.settings import from_dict
from dataset.about import About
from dataset.source import SourceConfig
from dataset.training_splits import TRAIN_SPLITS
from engine.cluster import ClusterConfig
from federated.dsl.settings import DslSettings
from generators.bounded_settings import NAME, faults_of_bounded
from generators.interface import GeneratorBackend
from generators.registry import AUTO, built_in_adapters, find_generator
from memorization.calibration import MemorizationConfig
from memorization.gates import GatesConfig
from nnunetv2_mod import PlanSettings, TrainSettings
from pipeline.unions import ScalingConfig

C = TypeVar("C", bound="RunConfig")

N_FOLDS = 5
PLAN_SOURCES = ("synthetic", "real_all")
FEDERATED_PLAN_SOURCES = ("statistics", "real_all")
NORMS = ("instance", "batch")
DSL = "dsl"
LABEL_SOURCES = ("network", "generated")
STRATEGIES = ("fedavg", "fedprox", "fedbn", DSL)
IMAGES_PER_TRAINING_IMAGE = 10  # paper: ten synthetic images per real one


@dataclass(frozen=True)
class PathConfig:
    """Folders."""

    data: str = "data"
    logs: str = "runs"


@dataclass(frozen=True)
class GeneralConfig:
    """The experiment's name, seed and cluster address."""

    exp_name: str = "unnamed"
    exp_desc: str = ""
    seed_base: int = 71173
    n_seeds: int = 1  # trainings of every network, each with a seed of its own
    ray_address: str | None = None
    redo: str | tuple[str, ...] = ()  # finished trainings that other code made: changed_code for all, or stages' names


@dataclass(frozen=True)
class RunConfig:
    """What the configuration of every experiment holds; an experiment derives its own from it."""

    path: PathConfig = PathConfig()
    general: GeneralConfig = GeneralConfig()
    cluster: ClusterConfig = ClusterConfig()
    skip: Mapping[str, Any] = field(default_factory=dict)  # kind -> site -> stage -> bool, as in the original
    dry_run: bool = False

    @property
    def run(self) -> Path:
        """The experiment's folder."""
        return Path(self.path.logs).expanduser().absolute() / self.general.exp_name

    @property
    def folds(self) -> tuple[int, ...]:
        """The outer folds of this run."""
        return (0,)


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """The source's own keys, the outer fold, and keys that users of the original know."""

    fold: int | str = 0  # 0 to 4, or "all"
    labels: dict[str, int] = field(default_factory=dict)  # empty: {foreground: 1}; Hydra would add to a default
    base_dataset: str | None = None  # folder under path.data; the default root
    dataset_descriptor: str = "case"  # the name in nnU-Net's dataset folders
    original_data_was_png: bool | None = None  # followed from the files; refused where it contradicts them
    laterality_matters: bool | None = None  # whether left and right differ; None: not said, as if they did
    about: About = About()  # source, licence and expected counts; no part of a result
    test_sites: tuple[str, ...] = ()  # contribute nothing; every network is tested on all their patients
    subgroup_columns: tuple[str, ...] = ()  # of the table, such as sex or scanner: results by subgroup
    min_slice_distance_mm: float = 4.0  # 3D: thinner slices are thinned for the generator


@dataclass(frozen=True)
class GanTrainConfig:
    """Length of the generator's training; ``auto``: as many thousand images as the site has images."""

    kimg: float | str = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """Lengths of the trainings; the rest follows from nnU-Net."""

    gan: GanTrainConfig = GanTrainConfig()
    nnunet_epochs: int = 1000
    nnunet_epochs_finetune: int | None = None  # None: as many as nnunet_epochs
    nnunet_iterations: int = 250
    nnunet_val_iterations: int = 50
    nnunet_schedule: str = "poly"
    nnunet_schedule_finetune: str = "poly_warmup"
    augmentation_processes: int = 0
    retry_failed: bool = False  # once more with another seed, where the validation curve shows that a training failed

    def segmentation(self, n_epochs: int | None = None) -> TrainSettings:
        """Settings of a training from scratch, of another length if given."""
        return self._settings(n_epochs or self.nnunet_epochs, self.nnunet_schedule)

    def from_scratch_as_long(self) -> TrainSettings:
        """Settings of a training from scratch of as many steps as pretraining and fine-tuning together."""
        return self.segmentation(self.nnunet_epochs + (self.nnunet_epochs_finetune or self.nnunet_epochs))

    def fine_tuning(self) -> TrainSettings:
        """Settings of the fine-tuning at a site."""
        return self._settings(self.nnunet_epochs_finetune or self.nnunet_epochs, self.nnunet_schedule_finetune)

    def _settings(self, n_epochs: int, schedule: str) -> TrainSettings:
        return TrainSettings(
            n_epochs=n_epochs,
            n_iterations=self.nnunet_iterations,
            n_val_iterations=self.nnunet_val_iterations,
            schedule=schedule,
            augmentation_processes=self.augmentation_processes,
        )


@dataclass(frozen=True)
class GeneratorConfig:
    """Which generator, on which split, and its own settings (validated by the generator)."""

    name: str = "stylegan2"  # of a generator that the installation has, or any other; auto: the adapter's own
    adapter: str | None = None  # module:Class; None: that of the generator called ``name``
    train_on: str = "train"  # "train_and_val" as the paper: synthetic images then derive from validation patients (D13)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_built_in(self) -> bool:
        """Whether its name says everything: then stages do not need its adapter in their settings."""
        return self.name in built_in_adapters()

    @property
    def adapter_path(self) -> str:
        """The adapter's ``module:Class``; a name that the installation has decides alone, as it always did."""
        return built_in_adapters().get(self.name) or self.adapter or self.name

    @property
    def backend(self) -> GeneratorBackend:
        """The generator itself."""
        return find_generator(self.adapter_path)

    def named(self) -> GeneratorConfig:
        """The same with its name in the place of ``auto``.

        Raises:
            InputError: there is no such generator, or the name is that of another one.
        """
        built_in = built_in_adapters()
        name = find_generator(self.adapter or AUTO).name if self.name == AUTO else self.name
        if name not in built_in and self.adapter in (None, *built_in.values()):
            find_generator(name)  # there is none: the message lists those there are
        if name in built_in and self.adapter not in (None, *built_in.values()):
            fix = f"use {AUTO}, which is the adapter's own name, or another name"
            raise InputError(f"the generator called {name} is not {self.adapter}", where="generator.name", fix=fix)
        if not NAME.fullmatch(name):
            fix = "use at most 32 lower-case letters, digits and _, a letter first"
            raise InputError(f"{name!r} is not allowed", where="generator.name", fix=fix)
        return replace(self, name=name)


@dataclass(frozen=True)
class GenerateConfig:
    """How many images a site samples (``auto``: ten per image the generator saw), and how many at a time.

    Those that the filter drops are replaced by others until ``n_images`` passed.
    """

    n_images: int | str = "auto"
    max_sampled_factor: float = 2.0  # at most so many times n_images are sampled, dropped ones included
    batch_size: int | str = "auto"  # of a forward pass; auto: as many as are fast on the device


@dataclass(frozen=True)
class LabelConfig:
    """Labelling of the kept images; synthetic slices of 3D data are labelled and shared in stacks.

    ``source``: which labels are shared, the site's network's predictions, or those that the generator made with the
    images (``generator.settings.with_labels``). The network predicts, and both are compared, either way.
    """

    source: str = "network"  # or "generated"
    stack_size: int = 50
    batch_size: int = 16


@dataclass(frozen=True)
class MergeConfig:
    """What is pooled, where the pooled set's plan comes from, and what of it validates the pretraining."""

    plan_from: str = "synthetic"  # or "real_all", the paper's: it needs pooled real data, which no deployment has
    validation_fraction: float = 0.2
    max_validation_images: int = 2500
    cross_site_check: bool = True  # sites compare others' packages with their own patients; what they name is dropped


@dataclass(frozen=True)
class EvaluationConfig:
    """What is compared, and how."""

    synthetic: bool = True  # the main experiment; without it the baselines alone
    real_all: bool = True  # also train on pooled real data: the upper bound, which no deployment has
    real_long: bool = True  # also train on real data as long as autoshare trains in all: the control of its gain
    per_site_synthetic: bool = False  # also train and test syn-X, each site's synthetic set alone
    nsd_tolerance: float = 2.0  # px for PNG data, mm for volumes


@dataclass(frozen=True)
class FederatedConfig:
    """Baselines that train across sites; none unless named."""

    strategies: tuple[str, ...] = ()  # of fedavg, fedprox, fedbn, dsl
    rounds: int | None = None  # None: as many as give every site train.nnunet_epochs epochs
    local_epochs: int = 1
    weighting: str = "cases"  # or "equal", as the original
    optimizer: str = "average"  # the momentum; or "keep", as the original, or "reset"
    prox_mu: float = 0.01  # of fedprox
    norm: str = "instance"  # nnU-Net's, without statistics; or "batch", whose statistics fedbn keeps at each site
    dsl: DslSettings = DslSettings()
    dsl_images_per_mask: int = 1
    plan_from: str = "statistics"  # the sites tell of their images as a whole; or "real_all", the original's


@dataclass(frozen=True)
class ExperimentConfig(RunConfig):
    """The main experiment, its baselines and the scaling study: what ``config/`` composes for them."""

    data: DataConfig = DataConfig()
    plan: PlanSettings = PlanSettings()
    train: TrainConfig = TrainConfig()
    generator: GeneratorConfig = GeneratorConfig()
    generate: GenerateConfig = GenerateConfig()
    memorization: MemorizationConfig = MemorizationConfig()
    gates: GatesConfig = GatesConfig()
    label: LabelConfig = LabelConfig()
    merge: MergeConfig = MergeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    federated: FederatedConfig = FederatedConfig()
    scaling: ScalingConfig = ScalingConfig()

    @property
    def source(self) -> SourceConfig:
        """The data source alone, with its root resolved."""
        values = {item.name: getattr(self.data, item.name) for item in fields(SourceConfig)}
        values["labels"] = values["labels"] or SourceConfig().labels
        if values["root"] is not None:
            values["root"] = str(Path(values["root"]).expanduser().absolute())
        elif self.data.base_dataset is not None:
            values["root"] = str(self.data_dir / self.data.base_dataset)
        return SourceConfig(**values)

    @property
    def data_dir(self) -> Path:
        """The folder of data sets and of the phantom."""
        return Path(self.path.data).expanduser().absolute()

    @property
    def folds(self) -> tuple[int, ...]:
        """The outer folds of this run."""
        return tuple(range(N_FOLDS)) if self.data.fold == "all" else (int(self.data.fold),)


def read_config(cls: type[C], values: Mapping[str, Any]) -> C:
    """A composed configuration as dataclass ``cls``.

    Raises:
        InputError: an unknown key (also one added with ``++``), a wrong type or a value that the dataclass refuses.
    """
    try:
        return from_dict(cls, values)
    except TypeError as error:
        fix = "correct the override or the YAML file; `--cfg job` prints all keys"
        raise InputError(str(error), where="configuration", fix=fix) from error


def experiment_config(values: Mapping[str, Any]) -> ExperimentConfig:
    """Check a composed configuration of the main experiment.

    Raises:
        InputError: as ``read_config`` and ``check_experiment``.
    """
    return check_experiment(read_config(ExperimentConfig, values))


def check_experiment(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with its generator's name, after all its values were checked.

    Raises:
        InputError: a value out of range, or values that contradict each other.
    """
    config = replace(config, generator=config.generator.named())
    train, generate, strategies = config.train, config.generate, config.federated.strategies
    factor = generate.max_sampled_factor
    checks = {  # key -> its value, whether it is allowed, what is
        "data.fold": (config.data.fold, config.data.fold in (*range(N_FOLDS), "all"), '0 to 4, or "all"'),
        "merge.plan_from": _one_of(config.merge.plan_from, PLAN_SOURCES),
        "generator.train_on": _one_of(config.generator.train_on, tuple(TRAIN_SPLITS)),
        "federated.strategies": (strategies, set(strategies) <= set(STRATEGIES), f"some of {STRATEGIES}"),
        "federated.norm": _one_of(config.federated.norm, NORMS),
        "federated.plan_from": _one_of(config.federated.plan_from, FEDERATED_PLAN_SOURCES),
        "label.source": _one_of(config.label.source, LABEL_SOURCES),
        "cluster.kind": _one_of(config.cluster.kind, ("ray", "inline")),
        "train.gan.kimg": _auto_or_positive(train.gan.kimg),
        "generate.n_images": _auto_or_positive(generate.n_images),
        "generate.batch_size": _auto_or_positive(generate.batch_size),
        "generate.max_sampled_factor": (factor, 1 <= factor < math.inf, "1 (nothing is replaced) or more"),
        "general.n_seeds": (config.general.n_seeds, config.general.n_seeds > 0, "a number above 0"),
        "train.nnunet_epochs": (train.nnunet_epochs, train.nnunet_epochs > 0, "a number above 0"),
        "general.exp_name": (config.general.exp_name, "/" not in config.general.exp_name, "a folder name without '/'"),
    }
    for key, (value, is_allowed, expected) in checks.items():
        if not is_allowed:
            raise InputError(f"{value!r} is not allowed", where=key, fix=f"use {expected}")
    _check_generator(config)
    pooled = {"merge.plan_from": config.merge.plan_from, "federated.plan_from": config.federated.plan_from}
    for key, source in pooled.items():
        if source == "real_all" and not config.evaluation.real_all:
            problem = "the common plan would come from pooled real data, which evaluation.real_all=false leaves out"
            raise InputError(problem, where=key, fix=f"leave {key} at its default")
    train.segmentation()
    train.fine_tuning()
    return config


def _check_generator(config: ExperimentConfig) -> None:
    """What the generator says of its settings must fit the dataset, the labels to share, and a package."""
    backend = config.generator.backend
    settings = backend.check(config.generator.settings)
    if backend.sees_mirrored(settings) and config.data.laterality_matters is not False:
        says = "says" if config.data.laterality_matters else "does not deny"
        raise InputError(
            f"images would be shown mirrored too, and the dataset {says} that left and right differ",
            where="generator.settings.mirror",
            fix="leave it false, or set data.laterality_matters=false if a mirrored image is a possible patient",
        )
    if config.label.source == "generated" and not backend.makes_masks(settings):
        raise InputError(
            "the generator's labels would be shared, and it makes none",
            where="label.source",
            fix="leave it at network, or set generator=ddpm or generator=ldm, and generator.settings.with_labels=true",
        )
    if not (config.generator.is_built_in and backend.shared_type):
        for where, value, expected in faults_of_bounded(settings, "generator.settings"):
            raise InputError(f"{value!r} cannot be told to others", where=where, fix=f"use {expected}")


def _one_of(value: str, allowed: tuple[str, ...]) -> tuple[object, bool, str]:
    return value, value in allowed, f"one of {allowed}"


def _auto_or_positive(value: float | str) -> tuple[object, bool, str]:
    return value, value == "auto" if isinstance(value, str) else value > 0, "auto or a number above 0"
