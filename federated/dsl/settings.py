"""Settings of DSL and the schedule that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.settings import refuse_wrong


@dataclass(frozen=True)
class DslSettings:
    """Distributed Synthetic Learning; the defaults are the paper's comparison (HyFree-S3; spec section 18.3).

    Where it differs on purpose: whole images by default instead of crops of 256 px (18.5), a learning rate that ends
    at 0 instead of at half (D10), and a perceptual loss that needs no download unless ``vgg16_weights`` names
    torchvision's file.
    """

    n_epochs: int = 200  # an epoch shows the largest site's images once
    n_iterations: int | None = None  # instead of n_epochs
    constant_share: float = 0.5  # of the iterations, before the learning rate falls
    batch_size: int = 6  # masks a site and iteration ("balance" sampling)
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 5e-4
    weight_d: float = 0.5
    weight_gan: float = 1.0
    weight_l1: float = 150.0
    weight_perceptual: float = 1.0
    vgg16_weights: str | None = None
    base_channels: int = 64
    n_blocks: int = 9
    dropout: float = 0.5  # the only noise, on at synthesis too
    crop_px: int | None = None  # the paper: 256
    flips: bool = True
    dp_clip_norm: float | None = None  # largest L2 norm of one image's gradient when it leaves a site
    dp_noise_multiplier: float = 0.0  # standard deviation of the noise on it, in clip norms
    n_checkpoints: int = 20

    def __post_init__(self) -> None:
        counts = ("n_epochs", "batch_size", "base_channels", "n_checkpoints")
        weights = ("weight_decay", "weight_d", "weight_gan", "weight_l1", "weight_perceptual", "dp_noise_multiplier")
        checks: list[tuple[str, bool, str]] = [
            ("n_iterations", self.n_iterations is None or self.n_iterations > 0, "a number above 0, or null"),
            ("n_blocks", self.n_blocks >= 0, "0 or more"),
            ("constant_share", 0 <= self.constant_share < 1, "a share below 1, so that the rate ends at 0"),
            ("learning_rate", self.learning_rate > 0, "a number above 0"),
            ("dropout", 0 <= self.dropout < 1, "a probability below 1"),
            ("crop_px", self.crop_px is None or self.crop_px > 0, "a number above 0, or null"),
            ("dp_clip_norm", self.dp_clip_norm is None or self.dp_clip_norm > 0, "a number above 0, or null"),
            (
                "dp_noise_multiplier",
                self.dp_noise_multiplier == 0 or self.dp_clip_norm is not None,
                "0, or set dp_clip_norm: noise protects only what is bounded",
            ),
        ]
        checks += [(name, getattr(self, name) > 0, "a number above 0") for name in counts]
        checks += [(name, getattr(self, name) >= 0, "0 or more") for name in weights]
        refuse_wrong(((name, getattr(self, name), valid, expected) for name, valid, expected in checks), "dsl")


def total_iterations(settings: DslSettings, largest_site: int) -> int:
    """Iterations of a training whose largest site has that many masks."""
    return settings.n_iterations or math.ceil(settings.n_epochs * largest_site / settings.batch_size)


def learning_rate(settings: DslSettings, iteration: int, n_iterations: int) -> float:
    """The rate of an iteration counted from 0: constant, then linear, 0 after the last one (D10: it ended at half)."""
    falling = (1 - settings.constant_share) * n_iterations
    return settings.learning_rate * min(1.0, (n_iterations - iteration) / falling)
