"""Settings of the generator: what the user may set, and what follows from the plan and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import InputError
from common.plan import Pair, Plan
from common.settings import Check, refuse_wrong

AUGMENTATIONS = ("color", "translation", "cutout")
SNAPSHOTS = ("heldout", "last", "fid")
PRECISIONS = ("fp32", "bf16")
AUTO_LENGTHS = ("images", "device")
AUTO = "auto"
IMAGE, PATIENT = UNITS = ("image", "patient")
WEIGHTS = ("r1_gamma", "path_length_weight", "path_length_decay")
COUNTS = (
    "batch_size",
    "channel_base",
    "channel_max",
    "z_dim",
    "w_dim",
    "mapping_layers",
    "r1_interval",
    "path_length_interval",
    "minibatch_std_group",
    "n_snapshots",
)
MAX_EMA_KIMG = 10.0  # half-life of the weight average in the "low_shot" preset
SHORTEST_EMA_SHARE = 0.05  # of the training, where the preset's half-life would outlast it


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of the weights, one unit more or less; the noise follows (``gan/privacy.py``)."""

    epsilon: float = 8.0
    delta: float | str = AUTO  # 1 / (10 units)
    clip_norm: float = 1.0  # largest norm of what one unit adds to the discriminator's gradient
    unit: str = IMAGE  # or "patient": all images of a patient together
    images_per_patient: int = 4  # at most so many of a patient's images in one step; only for the unit "patient"
    sampling_rate: float | str = AUTO  # with which a unit is in a step; batch size / units


@dataclass(frozen=True)
class GanConfig:
    """StyleGAN2 with DiffAugment; the defaults are the "low_shot" preset of the paper (spec section 10.1)."""

    batch_size: int = 8
    channel_base: int = 32768  # feature maps at resolution (h, w): channel_base / sqrt(h * w), at most channel_max
    channel_max: int = 512
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    learning_rate: float = 0.002
    r1_gamma: float = 10.0
    r1_interval: int = 16  # steps between two lazy regularisations of the discriminator
    path_length_weight: float = 2.0
    path_length_decay: float = 0.01
    path_length_interval: int = 4
    style_mixing: float = 0.9  # probability
    minibatch_std_group: int = 4
    ema_kimg: float | None = None  # half-life; None: 10, or a twentieth of a training too short for that
    augment: tuple[str, ...] = AUGMENTATIONS
    mirror: bool = False  # also show images mirrored; the dataset decides whether that may be asked for (D35)
    n_snapshots: int = 20  # checkpoints and sample sheets over the training
    snapshot: str = "heldout"  # which becomes the generator: by held-out patients; "last"; "fid", the paper's (D33)
    precision: str = "fp32"  # of the convolutions; or bf16
    auto_kimg: str = "images"  # what a length of auto means: as many kimg as images, or "device": gan/auto.py's table
    privacy: Privacy | None = None  # differential privacy; None: the filter alone, which is evidence and no guarantee


@dataclass(frozen=True)
class GanSettings:
    """Everything a training needs; all of it is stored in the checkpoint."""

    config: GanConfig
    image_size_px: Pair  # (height, width)
    n_channels: int
    strides: tuple[Pair, ...]
    kernel_sizes: tuple[Pair, ...]
    kimg: float
    n_steps: int
    ema_kimg: float

    @property
    def resolutions(self) -> tuple[Pair, ...]:
        """Size at each stage of the plan, full size first."""
        sizes = [self.image_size_px]
        for stride in self.strides[1:]:
            sizes.append((sizes[-1][0] // stride[0], sizes[-1][1] // stride[1]))
        return tuple(sizes)

    @property
    def channels(self) -> tuple[int, ...]:
        """Feature maps at each stage, full size first: ``min(base // floor(sqrt(h w)), max)``."""
        return tuple(
            max(1, min(self.config.channel_base // math.isqrt(height * width), self.config.channel_max))
            for height, width in self.resolutions
        )


def derive_settings(plan: Plan, n_images: int, n_channels: int, kimg: float | None, config: GanConfig) -> GanSettings:
    """Settings that follow from the plan and the data; ``kimg`` None: as many thousand images as there are images.

    Raises:
        InputError: a size that the plan's strides do not divide, or a configuration no training can use.
    """
    _check(config, n_images)
    total = (math.prod(stride[0] for stride in plan.strides), math.prod(stride[1] for stride in plan.strides))
    height, width = plan.patch_size_px
    if height % total[0] or width % total[1]:
        raise InputError(
            f"patch {height} x {width} is not divisible by the product of the strides {total}",
            where="plan",
            fix="let nnU-Net plan the dataset again",
        )
    if kimg is not None and not 0 < kimg < math.inf:
        raise InputError(f"{kimg!r} is not a length", where="train.gan.kimg", fix="use auto or a number above 0")
    if len(plan.kernel_sizes) != len(plan.strides):
        raise InputError(
            f"{len(plan.strides)} strides and {len(plan.kernel_sizes)} kernels",
            where="plan",
            fix="let nnU-Net plan the dataset again",
        )
    kimg = float(max(1, n_images)) if kimg is None else float(kimg)
    ema_kimg = config.ema_kimg if config.ema_kimg is not None else min(MAX_EMA_KIMG, SHORTEST_EMA_SHARE * kimg)
    return GanSettings(
        config=config,
        image_size_px=plan.patch_size_px,
        n_channels=n_channels,
        strides=tuple((down, across) for down, across in plan.strides),
        kernel_sizes=tuple((rows, columns) for rows, columns in plan.kernel_sizes),
        kimg=kimg,
        n_steps=max(1, math.ceil(kimg * 1000 / config.batch_size)),
        ema_kimg=ema_kimg,
    )


def _check(config: GanConfig, n_images: int) -> None:
    unknown = sorted(set(config.augment) - set(AUGMENTATIONS))
    checks: list[Check] = [
        ("augment", unknown, not unknown, f"names out of {AUGMENTATIONS}"),
        ("snapshot", config.snapshot, config.snapshot in SNAPSHOTS, f"one of {SNAPSHOTS}"),
        ("n_images", n_images, n_images >= 2, "at least two training images"),
        ("precision", config.precision, config.precision in PRECISIONS, f"one of {PRECISIONS}, or auto"),
        ("auto_kimg", config.auto_kimg, config.auto_kimg in AUTO_LENGTHS, f"one of {AUTO_LENGTHS}"),
        ("style_mixing", config.style_mixing, 0 <= config.style_mixing <= 1, "a probability"),
        ("learning_rate", config.learning_rate, config.learning_rate > 0, "a number above 0"),
        ("ema_kimg", config.ema_kimg, config.ema_kimg is None or config.ema_kimg > 0, "a number above 0, or null"),
    ]
    checks += [(name, getattr(config, name), getattr(config, name) >= 1, "at least 1") for name in COUNTS]
    checks += [(name, getattr(config, name), getattr(config, name) >= 0, "0 or more") for name in WEIGHTS]
    refuse_wrong([*checks, *_privacy_checks(config)], "generator.settings")


def _privacy_checks(config: GanConfig) -> list[Check]:
    """Under differential privacy no number but the noisy gradient may depend on a real image."""
    if config.privacy is None:
        return []
    privacy, group, rule = config.privacy, config.minibatch_std_group, config.snapshot
    delta_is_valid = privacy.delta == AUTO or (isinstance(privacy.delta, float) and 0 < privacy.delta < 1)
    rate = privacy.sampling_rate
    rate_is_valid = rate == AUTO or (isinstance(rate, int | float) and 0 < rate <= 1)
    n_of_a_patient = privacy.images_per_patient
    return [
        ("privacy.epsilon", privacy.epsilon, 0 < privacy.epsilon < math.inf, "a number above 0"),
        ("privacy.delta", privacy.delta, delta_is_valid, "auto or a number between 0 and 1"),
        ("privacy.clip_norm", privacy.clip_norm, 0 < privacy.clip_norm < math.inf, "a number above 0"),
        ("privacy.unit", privacy.unit, privacy.unit in UNITS, f"one of {UNITS}"),
        ("privacy.images_per_patient", n_of_a_patient, n_of_a_patient >= 1, "at least 1"),
        ("privacy.sampling_rate", rate, rate_is_valid, "auto or a number above 0, at most 1"),
        # a deviation over several images would make the gradient of one depend on the others: none could be bounded
        ("minibatch_std_group", group, group == 1, "1 with privacy: a gradient is then that of one image"),
        ("snapshot", rule, rule == "last", "last with privacy: the other rules look at real images"),
    ]
