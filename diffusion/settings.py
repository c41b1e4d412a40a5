"""Settings of the diffusion models: what the user may set, and what follows from the plan, the data and the machine.

The mapping itself is ``diffusion.planning``; here stand the types, so that a receiver of a package can check them
without PyTorch. A size, stride or kernel has one entry for each spatial axis: two for images, three for volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import InputError
from common.plan import Size

AUTO = "auto"
KINDS = ("kl", "vq")
PERCEPTUAL = ("efficientnet_lite0", "none")
SCHEDULES = ("scaled_linear", "cosine", "rectified_flow")
PREDICTIONS = ("v", "epsilon")
SAMPLERS = ("ddpm", "ddim", "multistep")
SNAPSHOTS = ("heldout", "last", "fid")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class AutoencoderConfig:
    """The autoencoder of a latent diffusion model (Rombach et al. 2022, section 3.1)."""

    kind: str = "kl"  # or "vq"
    channels: tuple[int, ...] | str = AUTO  # feature maps of each level, full size first
    latent_channels: int = 4
    n_downsamplings: int | str = AUTO
    n_res_blocks: int = 1  # a level
    codebook_size: int = 512  # of "vq"
    perceptual: str = "efficientnet_lite0"  # comes with the installation; or "none"
    perceptual_weight: float | str = AUTO  # 0.5 in 2D, 0.125 in 3D
    adversarial_weight: float = 0.05
    adversarial_from: float = 0.25  # share of its training after which the discriminator joins
    kl_weight: float = 1e-3  # of the mean over latent values, so that it does not depend on their number
    learning_rate: float | str = AUTO
    kimg_share: float = 0.3  # of train.gan.kimg; the denoiser has the rest


@dataclass(frozen=True)
class DiffusionConfig:
    """A diffusion model; ``autoencoder`` None: in pixels."""

    autoencoder: AutoencoderConfig | None = None
    channels: tuple[int, ...] | str = AUTO  # feature maps of each level of the denoiser, full size first
    n_res_blocks: int = 2  # a level
    batch_size: int | str = AUTO
    n_accumulated: int | str = AUTO  # parts a batch is computed in; the result is that of the whole batch
    checkpointing: bool | str = AUTO  # activations are computed twice and not kept
    precision: str = AUTO  # fp32 or bf16
    learning_rate: float | str = AUTO
    n_times: int = 1000
    schedule: str = "cosine"
    prediction: str = "v"
    ema_kimg: float | None = None  # half-life; None: 10, or a twentieth of a shorter training
    augment: tuple[str, ...] = ()  # nothing else: it measured worse and is gone; older files have the key
    mirror: bool = False  # also show images mirrored; the dataset decides whether that may be asked for (D35)
    with_labels: bool = False  # an experiment's generator: the site's label maps are learned and generated too
    sampler: str = "multistep"
    n_evaluations: int = 20  # of the denoiser for one image
    n_snapshots: int = 20
    snapshot: str = "heldout"  # which becomes the generator: by held-out patients; "last"; "fid"


@dataclass(frozen=True)
class AutoencoderSettings:
    """Everything about the autoencoder; strides and kernels lead from each level to the next smaller one."""

    kind: str
    n_channels: int
    channels: tuple[int, ...]
    latent_channels: int
    n_res_blocks: int
    codebook_size: int
    first_kernel: Size
    strides: tuple[Size, ...]
    kernel_sizes: tuple[Size, ...]
    perceptual: str
    perceptual_weight: float
    adversarial_weight: float
    kl_weight: float
    learning_rate: float
    batch_size: int
    n_accumulated: int
    checkpointing: bool
    n_epochs: int
    steps_per_epoch: int
    adversarial_from_step: int

    @property
    def reduction(self) -> Size:
        """Image voxels per latent voxel along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


@dataclass(frozen=True)
class DenoiserSettings:
    """The U-Net that denoises; strides and kernels lead from each level to the next smaller one."""

    n_channels: int  # of what is denoised: images, with their labels, or latents
    channels: tuple[int, ...]
    n_res_blocks: int
    first_kernel: Size
    strides: tuple[Size, ...]
    kernel_sizes: tuple[Size, ...]
    attention: tuple[bool, ...]  # of each level; the middle has it where the last level has
    checkpointing: bool = False
    n_classes: int = 0  # that a sample can be conditioned on; 0: none
    n_context_channels: int = 0  # of masks or images that are given with the noise
    n_augment: int = 0  # nothing else: older files have the key


@dataclass(frozen=True)
class DiffusionSettings:
    """Everything a training needs; all of it is stored in the checkpoint."""

    config: DiffusionConfig
    image_size: Size  # voxels of what is trained on and sampled
    n_channels: int  # of an image
    n_label_channels: int  # one for each foreground label that is generated with the image; 0: images alone
    autoencoder: AutoencoderSettings | None
    denoiser: DenoiserSettings
    batch_size: int
    n_accumulated: int
    precision: str
    learning_rate: float
    kimg: float  # of both trainings together
    ema_kimg: float
    n_epochs: int  # of the denoiser: an epoch is what lies between two snapshots
    steps_per_epoch: int

    @property
    def n_axes(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.image_size)

    @property
    def n_steps(self) -> int:
        """Of the denoiser's training."""
        return self.n_epochs * self.steps_per_epoch

    @property
    def n_data_channels(self) -> int:
        """Of what the training is given: images and labels."""
        return self.n_channels + self.n_label_channels

    @property
    def denoised_size(self) -> Size:
        """Of what the denoiser sees: the image's, or the latent's."""
        if self.autoencoder is None:
            return self.image_size
        return tuple(n // r for n, r in zip(self.image_size, self.autoencoder.reduction, strict=True))


def check_config(config: DiffusionConfig, where: str = "generator.settings") -> None:
    """InputError for values no training can use."""
    auto = config.autoencoder
    checks: list[tuple[str, object, bool, str]] = [
        ("schedule", config.schedule, config.schedule in SCHEDULES, f"one of {SCHEDULES}"),
        ("prediction", config.prediction, config.prediction in PREDICTIONS, f"one of {PREDICTIONS}"),
        ("sampler", config.sampler, config.sampler in SAMPLERS, f"one of {SAMPLERS}"),
        ("snapshot", config.snapshot, config.snapshot in SNAPSHOTS, f"one of {SNAPSHOTS}"),
        ("precision", config.precision, config.precision in (*PRECISIONS, AUTO), f"one of {PRECISIONS}, or auto"),
        ("augment", config.augment, config.augment == (), "[]: the network is no longer told of augmentations"),
        ("ema_kimg", config.ema_kimg, config.ema_kimg is None or config.ema_kimg > 0, "a number above 0, or null"),
        ("n_times", config.n_times, config.n_times >= 10, "10 or more"),
        ("n_res_blocks", config.n_res_blocks, config.n_res_blocks >= 1, "1 or more"),
        ("n_snapshots", config.n_snapshots, config.n_snapshots >= 1, "1 or more"),
        (
            "n_evaluations",
            config.n_evaluations,
            1 <= config.n_evaluations <= config.n_times,
            f"1 to n_times, {config.n_times}",
        ),
        (
            "sampler",
            config.sampler,
            config.sampler != "ddpm" or config.schedule != "rectified_flow",
            "ddim or multistep with schedule=rectified_flow, which has no ancestral steps",
        ),
        (
            "prediction",
            config.prediction,
            config.prediction == "v" or config.schedule != "rectified_flow",
            "v with schedule=rectified_flow",
        ),
    ]
    numbers = {name: getattr(config, name) for name in ("batch_size", "n_accumulated", "learning_rate")}
    lists = {"channels": config.channels}
    if auto is not None:
        checks += _autoencoder_checks(auto)
        lists["autoencoder.channels"] = auto.channels
        numbers |= {
            "autoencoder.learning_rate": auto.learning_rate,
            "autoencoder.n_downsamplings": auto.n_downsamplings,
            "autoencoder.perceptual_weight": auto.perceptual_weight,
        }
    zero_allowed = ("autoencoder.perceptual_weight",)
    for name, value in numbers.items():
        valid = value == AUTO if isinstance(value, str) else value > 0 or (value == 0 and name in zero_allowed)
        checks.append((name, value, valid, "auto or a number above 0"))
    for name, widths in lists.items():
        valid = widths == AUTO if isinstance(widths, str) else len(widths) > 0 and min(widths) >= 4
        checks.append((name, widths, valid, "auto or widths of at least 4, multiples of the first"))
        if not isinstance(widths, str) and widths:
            checks.append((name, widths, all(n % widths[0] == 0 for n in widths), "multiples of the first width"))
    checkpointing = config.checkpointing
    checks.append(("checkpointing", checkpointing, checkpointing in (True, False, AUTO), "true, false or auto"))
    for name, value, valid, expected in checks:
        if not valid:
            raise InputError(f"{value!r} is not allowed", where=f"{where}.{name}", fix=f"use {expected}")


def _autoencoder_checks(config: AutoencoderConfig) -> list[tuple[str, object, bool, str]]:
    share, since = config.kimg_share, config.adversarial_from
    checks: list[tuple[str, object, bool, str]] = [
        ("kind", config.kind, config.kind in KINDS, f"one of {KINDS}"),
        ("perceptual", config.perceptual, config.perceptual in PERCEPTUAL, f"one of {PERCEPTUAL}"),
        ("kimg_share", share, 0 < share < 1, "a number between 0 and 1"),
        ("adversarial_from", since, 0 <= since <= 1, "0 to 1 (never)"),
    ]
    counts = ("latent_channels", "n_res_blocks", "codebook_size")
    checks += [(name, getattr(config, name), getattr(config, name) >= 1, "1 or more") for name in counts]
    weights = ("adversarial_weight", "kl_weight")
    checks += [(name, getattr(config, name), getattr(config, name) >= 0, "0 or more") for name in weights]
    return [(f"autoencoder.{name}", value, valid, expected) for name, value, valid, expected in checks]
