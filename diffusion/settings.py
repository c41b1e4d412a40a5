"""Settings of the diffusion models: what the user may set, and what follows from the plan, the data and the machine.

The mapping itself is ``diffusion.planning``; here stand the types, so that a receiver of a package can check them
without PyTorch. A size, stride or kernel has one entry for each spatial axis: two for images, three for volumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.plan import Size
from common.settings import Check, refuse_wrong

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

    def latent_size(self, image_size: Size) -> Size:
        """Voxels of the latents of an image."""
        reduction = (math.prod(axis) for axis in zip(*self.strides, strict=True))
        return tuple(n // r for n, r in zip(image_size, reduction, strict=True))


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
        return self.image_size if self.autoencoder is None else self.autoencoder.latent_size(self.image_size)


def check_config(config: DiffusionConfig, where: str = "generator.settings") -> None:
    """InputError for values no training can use."""
    is_flow = config.schedule == "rectified_flow"
    with_flow = "with schedule=rectified_flow"
    choices: dict[str, tuple[object, ...]]
    choices = {"schedule": SCHEDULES, "prediction": PREDICTIONS, "sampler": SAMPLERS, "snapshot": SNAPSHOTS}
    choices |= {"precision": (*PRECISIONS, AUTO), "checkpointing": (True, False, AUTO)}
    checks = [_one_of(name, getattr(config, name), allowed) for name, allowed in choices.items()]
    n_times, ema_kimg, sampler, prediction = config.n_times, config.ema_kimg, config.sampler, config.prediction
    checks += [
        ("augment", config.augment, config.augment == (), "[]: the network is no longer told of augmentations"),
        ("ema_kimg", ema_kimg, ema_kimg is None or ema_kimg > 0, "a number above 0, or null"),
        ("n_times", n_times, n_times >= 10, "10 or more"),
        ("n_evaluations", config.n_evaluations, 1 <= config.n_evaluations <= n_times, f"1 to n_times, {n_times}"),
        ("sampler", sampler, sampler != "ddpm" or not is_flow, f"ddim or multistep {with_flow}: it has no ddpm steps"),
        ("prediction", prediction, prediction == "v" or not is_flow, f"v {with_flow}"),
        *_at_least(1, config, "n_res_blocks", "n_snapshots"),
        *_auto_or_positive(config, "batch_size", "n_accumulated", "learning_rate"),
        *_widths_checks("channels", config.channels),
    ]
    own = config.autoencoder
    if own is not None:
        weight, share, since = own.perceptual_weight, own.kimg_share, own.adversarial_from
        is_weight = weight == AUTO if isinstance(weight, str) else weight >= 0
        of_autoencoder: list[Check] = [
            _one_of("kind", own.kind, KINDS),
            _one_of("perceptual", own.perceptual, PERCEPTUAL),
            ("kimg_share", share, 0 < share < 1, "a number between 0 and 1"),
            ("adversarial_from", since, 0 <= since <= 1, "0 to 1 (never)"),
            ("perceptual_weight", weight, is_weight, "auto, 0 or more"),
            *_at_least(1, own, "latent_channels", "n_res_blocks", "codebook_size"),
            *_at_least(0, own, "adversarial_weight", "kl_weight"),
            *_auto_or_positive(own, "learning_rate", "n_downsamplings"),
            *_widths_checks("channels", own.channels),
        ]
        checks += [(f"autoencoder.{name}", value, valid, expected) for name, value, valid, expected in of_autoencoder]
    refuse_wrong(checks, where)


def _one_of(name: str, value: object, allowed: Sequence[object]) -> Check:
    return name, value, value in allowed, "one of " + ", ".join(str(one) for one in allowed)


def _at_least(least: int, config: object, *names: str) -> list[Check]:
    return [(name, value := getattr(config, name), value >= least, f"{least} or more") for name in names]


def _auto_or_positive(config: object, *names: str) -> list[Check]:
    values = [(name, getattr(config, name)) for name in names]
    expected = "auto or a number above 0"
    return [(name, value, value == AUTO if isinstance(value, str) else value > 0, expected) for name, value in values]


def _widths_checks(name: str, widths: tuple[int, ...] | str) -> list[Check]:
    if isinstance(widths, str):
        return [(name, widths, widths == AUTO, "auto or widths of at least 4, multiples of the first")]
    valid = len(widths) > 0 and min(widths) >= 4 and all(n % widths[0] == 0 for n in widths)
    return [(name, widths, valid, "auto or widths of at least 4, multiples of the first")]
