"""When and on how many samples a training is scored: a pure function of its settings, so that a resumed one agrees.

Times are estimates for one CPU core or one GPU. Only their ratios matter: how many images can be generated and embedded
in ``SHARE_OF_TIME`` of the training's time. At the end the log says what share it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gan.settings import GanSettings
from training.monitor import MonitorSchedule, schedule_within

SHARE_OF_TIME = 0.03
SAFETY = 0.6  # of the share; the estimates are off by up to 1.6
MIN_SAMPLES, MAX_SAMPLES = 64, 512
# forward passes' worth of multiplications per training image. Generator: Gmain 3 (forward, backward twice as much),
# Dmain 1, path lengths on half a batch about 9 / 2 over their interval; discriminator: Gmain 2, Dmain 6, R1 about 9.
GENERATOR_PASSES, GENERATOR_LAZY_PASSES = 4.0, 4.5
DISCRIMINATOR_PASSES, DISCRIMINATOR_LAZY_PASSES = 8.0, 9.0


@dataclass(frozen=True)
class Speed:
    """What a device does: multiply-adds a second, seconds per feature-map value, seconds per step for its launches."""

    macs_per_s: float
    s_per_value: float
    s_per_step: float


# CPU: of gan/ on one core of a busy two-core machine, where EfficientNet-lite0 takes 0.1 s an image; pointwise work is
# taken as a third of what was measured, so that a faster gan/ stays within the share. CUDA: cautious, not measured.
SPEEDS = {"cpu": Speed(25e9, 8e-8, 0.0), "cuda": Speed(200e12, 0.0, 5e-3)}


def snapshot_interval(settings: GanSettings) -> int:
    """Steps from one snapshot to the next; the last step has one too."""
    return max(1, math.ceil(settings.n_steps / settings.config.n_snapshots))


def derive_schedule(
    settings: GanSettings, seconds_per_image: float, n_references: int, device: str = "cpu"
) -> MonitorSchedule:
    """The measurements, samples and real images that the training's share of the time allows."""
    generate_s, train_s = image_seconds(settings, SPEEDS["cuda" if device.startswith("cuda") else "cpu"])
    return schedule_within(
        budget_s=SAFETY * SHARE_OF_TIME * train_s * settings.n_steps * settings.config.batch_size,
        sample_s=generate_s,
        embed_s=seconds_per_image,
        n_references=n_references,
        n_snapshots=math.ceil(settings.n_steps / snapshot_interval(settings)),
        min_samples=MIN_SAMPLES,
        max_samples=MAX_SAMPLES,
    )


def image_seconds(settings: GanSettings, speed: Speed) -> tuple[float, float]:
    """Seconds to generate an image and to train on one."""
    generator, discriminator = forward_macs(settings)
    values = sum(math.prod(size) * n for size, n in zip(settings.resolutions, settings.channels, strict=True))
    config = settings.config
    generator_passes = GENERATOR_PASSES + GENERATOR_LAZY_PASSES / config.path_length_interval
    discriminator_passes = DISCRIMINATOR_PASSES + DISCRIMINATOR_LAZY_PASSES / config.r1_interval
    macs = generator_passes * generator + discriminator_passes * discriminator
    train_s = macs / speed.macs_per_s + values * speed.s_per_value + speed.s_per_step / config.batch_size
    return generator / speed.macs_per_s + values * speed.s_per_value / GENERATOR_PASSES, train_s


def forward_macs(settings: GanSettings) -> tuple[float, float]:
    """Multiply-adds of the convolutions for one image: generator, discriminator."""
    sizes = [math.prod(size) for size in settings.resolutions]
    channels, kernels = settings.channels, [math.prod(kernel) for kernel in settings.kernel_sizes]
    generator = float(sizes[-1] * kernels[-1] * channels[-1] ** 2)
    discriminator = float(sizes[-1] * 9 * channels[-1] ** 2)
    for i in range(len(sizes) - 1):
        generator += kernels[i] * channels[i] * (sizes[i + 1] * channels[i + 1] + sizes[i] * channels[i])
        discriminator += sizes[i] * 9 * channels[i] ** 2
        discriminator += sizes[i + 1] * channels[i] * channels[i + 1] * (kernels[i + 1] + 1)
    return generator, discriminator
