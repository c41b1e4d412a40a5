"""The typed configuration of an experiment; every YAML under ``config/`` mirrors these dataclasses one to one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.settings import from_dict
from dataset.about import About
from dataset.source import SourceConfig
from engine.cluster import ClusterConfig
from federated.dsl.settings import DslSettings
from memorization.calibration import MemorizationConfig
from memorization.gates import GatesConfig
from nnunetv2_mod import PlanSettings, TrainSettings

N_FOLDS = 5
PLAN_SOURCES = ("synthetic", "real_all")
FEDERATED_PLAN_SOURCES = ("statistics", "real_all")
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
    ray_address: str | None = None
    redo: str | tuple[str, ...] = ()  # finished trainings that other code made: changed_code for all, or stages' names


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

    def segmentation(self, n_epochs: int | None = None) -> TrainSettings:
        """Settings of a training from scratch, of another length if given."""
        return TrainSettings(
            n_epochs=n_epochs or self.nnunet_epochs,
            n_iterations=self.nnunet_iterations,
            n_val_iterations=self.nnunet_val_iterations,
            schedule=self.nnunet_schedule,
            augmentation_processes=self.augmentation_processes,
        )

    def fine_tuning(self) -> TrainSettings:
        """Settings of the fine-tuning at a site."""
        return TrainSettings(
            n_epochs=self.nnunet_epochs_finetune or self.nnunet_epochs,
            n_iterations=self.nnunet_iterations,
            n_val_iterations=self.nnunet_val_iterations,
            schedule=self.nnunet_schedule_finetune,
            augmentation_processes=self.augmentation_processes,
        )


@dataclass(frozen=True)
class GeneratorConfig:
    """Which generator, on which split, and its own settings (validated by the generator)."""

    name: str = "stylegan2"
    train_on: str = "train"  # "train_and_val" as the paper: synthetic images then derive from validation patients (D13)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerateConfig:
    """How many images a site samples (``auto``: ten per image the generator saw), and how many at a time.

    Those that the filter drops are replaced by others until ``n_images`` passed.
    """

    n_images: int | str = "auto"
    max_sampled_factor: float = (
        2.0  # dropped ones and replacements included, at most so many times n_images are sampled
    )
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
    cross_site_check: bool = (
        True  # sites compare each other's packages with their own patients; what they name is dropped
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is compared, and how."""

    synthetic: bool = True  # the main experiment; without it the baselines alone
    real_all: bool = True  # also train on pooled real data: the upper bound, which no deployment has
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
    dsl: DslSettings = DslSettings()
    dsl_images_per_mask: int = 1
    plan_from: str = "statistics"  # the sites tell of their images as a whole; or "real_all", the original's


@dataclass(frozen=True)
class Union:
    """Sites that share with each other, under one name."""

    name: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class ScalingConfig:
    """How many sites contribute: unions beside that of all sites; ``[2, 4]`` or ``[[A, C], [B, D]]``."""

    unions: tuple[int | tuple[str, ...], ...] = ()

    def named_unions(self, sites: Sequence[str]) -> tuple[Union, ...]:
        """The unions without that of all sites: the first n are called by their number, others ``[A+C]``.

        Raises:
            InputError: more sites than there are, an unknown site, or a union named as a site is.
        """
        found: dict[tuple[str, ...], Union] = {}
        for union in self.unions:
            members = tuple(sites[:union]) if isinstance(union, int) else union
            known = 0 < union <= len(sites) if isinstance(union, int) else members and set(members) <= set(sites)
            name = str(union) if isinstance(union, int) else f"[{'+'.join(members)}]"
            if not known or len(set(members)) < len(members) or name in sites:
                raise InputError(
                    f"union {union!r} of the sites {list(sites)}",
                    where="scaling.unions",
                    fix=f"give numbers from 1 to {len(sites)}, or lists of these sites",
                )
            if set(members) != set(sites):
                found.setdefault(members, Union(name, members))
        return tuple(found.values())


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: what ``python run_nnunet.py --config-name=...`` composes."""

    path: PathConfig = PathConfig()
    general: GeneralConfig = GeneralConfig()
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
    cluster: ClusterConfig = ClusterConfig()
    skip: Mapping[str, Any] = field(default_factory=dict)  # kind -> site -> stage -> bool, as in the original
    dry_run: bool = False

    @property
    def run(self) -> Path:
        """The experiment's folder."""
        return Path(self.path.logs).expanduser().absolute() / self.general.exp_name

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


def experiment_config(values: Mapping[str, Any]) -> ExperimentConfig:
    """Check a composed configuration.

    Raises:
        InputError: an unknown key (also one added with ``++``), a wrong type or a value out of range.
    """
    try:
        config = from_dict(ExperimentConfig, values)
    except TypeError as error:
        raise InputError(
            str(error), where="configuration", fix="correct the override or the YAML file; `--cfg job` prints all keys"
        ) from error
    _check_values(config)
    return config


def _check_values(config: ExperimentConfig) -> None:
    checks = (
        (
            "data.fold",
            config.data.fold,
            config.data.fold == "all" or config.data.fold in range(N_FOLDS),
            '0 to 4, or "all"',
        ),
        ("merge.plan_from", config.merge.plan_from, config.merge.plan_from in PLAN_SOURCES, f"one of {PLAN_SOURCES}"),
        (
            "generator.train_on",
            config.generator.train_on,
            config.generator.train_on in ("train", "train_and_val"),
            "train or train_and_val",
        ),
        (
            "federated.strategies",
            config.federated.strategies,
            set(config.federated.strategies) <= set(STRATEGIES),
            f"some of {STRATEGIES}",
        ),
        (
            "federated.plan_from",
            config.federated.plan_from,
            config.federated.plan_from in FEDERATED_PLAN_SOURCES,
            f"one of {FEDERATED_PLAN_SOURCES}",
        ),
        ("label.source", config.label.source, config.label.source in LABEL_SOURCES, f"one of {LABEL_SOURCES}"),
        ("cluster.kind", config.cluster.kind, config.cluster.kind in ("ray", "inline"), "ray or inline"),
        ("train.gan.kimg", config.train.gan.kimg, _auto_or_positive(config.train.gan.kimg), "auto or a number above 0"),
        (
            "generate.n_images",
            config.generate.n_images,
            _auto_or_positive(config.generate.n_images),
            "auto or a number above 0",
        ),
        (
            "generate.batch_size",
            config.generate.batch_size,
            _auto_or_positive(config.generate.batch_size),
            "auto or a number above 0",
        ),
        (
            "generate.max_sampled_factor",
            config.generate.max_sampled_factor,
            1 <= config.generate.max_sampled_factor < math.inf,
            "1 (nothing is replaced) or more",
        ),
        ("train.nnunet_epochs", config.train.nnunet_epochs, config.train.nnunet_epochs > 0, "a number above 0"),
        ("general.exp_name", config.general.exp_name, "/" not in config.general.exp_name, "a folder name without '/'"),
    )
    for key, value, valid, expected in checks:
        if not valid:
            raise InputError(f"{value!r} is not allowed", where=key, fix=f"use {expected}")
    if config.generator.settings.get("mirror") and config.data.laterality_matters is not False:
        said = "says" if config.data.laterality_matters else "does not deny"
        raise InputError(
            f"images would be shown mirrored too, and the dataset {said} that left and right differ",
            where="generator.settings.mirror",
            fix="leave it false, or set data.laterality_matters=false if a mirrored image is a possible patient",
        )
    if config.label.source == "generated" and not config.generator.settings.get("with_labels"):
        raise InputError(
            "the generator's labels would be shared, and it makes none",
            where="label.source",
            fix="leave it at network, or set generator=ddpm or generator=ldm, and generator.settings.with_labels=true",
        )
    pooled = {"merge.plan_from": config.merge.plan_from, "federated.plan_from": config.federated.plan_from}
    for key, source in pooled.items():
        if source == "real_all" and not config.evaluation.real_all:
            raise InputError(
                "the common plan would come from pooled real data, which evaluation.real_all=false leaves out",
                where=key,
                fix=f"leave {key} at its default",
            )
    config.train.segmentation()
    config.train.fine_tuning()


def _auto_or_positive(value: float | str) -> bool:
    return value == "auto" if isinstance(value, str) else value > 0
