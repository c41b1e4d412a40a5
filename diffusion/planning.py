"""What ``auto`` stands for in a diffusion model's settings: from plan, data and machine, the same three give the same.

================ =================================================================================================
image size       2D: the plan's patch. 3D: each axis the edge of ``layout.EDGES`` nearest the median size (a shorter
                 axis as it is), then the nearest multiple of all strides that are used
autoencoder      n downsamplings for a largest edge up to 64: 1, 256: 2, beyond: 3; no more than the plan has, and no
                 shortened axis below 4 voxels; the plan's strides and kernels of the stages 1 to n, axis by axis
denoiser         goes on where the autoencoder ends: up to 3 levels (pixels: 4), while the plan has strides, no
                 shortened axis falls below 4 voxels and the longest not below 8; 2D: while they divide the size
attention        in levels but the first with up to 256 positions on a CPU, 4096 on a GPU; the middle as the last level
widths, GPU      autoencoder 2D 64, 128, 256, 256, 3D 32, 64, 128, 128; denoiser of latents 256, 512, 768, of pixels
                 64, 128, 256, 256
widths, CPU      base x (1, 2, 4, 4), latents base x (1, 2, 2), with the largest base of 64, 48, 32, 24, 16, 8 at which
                 a forward pass of an image costs up to 1.25 GFLOP: autoencoder and denoiser each, counted
batch            CPU: 8. GPU: 2D three quarters of the plan's, 3D autoencoder 2, denoiser 4. No more than the images,
                 at least 2, above 4 a multiple of 4; and of ``n_accumulated`` where that is given
memory           while a step as measured exceeds 0.8 of the machine's: checkpointing, then the batch in more parts
                 (the next divisor at least twice as many), then, if their number is given, half the batch; then half
                 of all widths, down to 8, with all of that again
precision        bf16 where a GPU has it, else fp32
learning_rate    denoiser 0.025 / first width, autoencoder 0.032 / first width, at most 0.001
perceptual       0.5 in 2D, 0.125 in 3D
kimg             as many as images; on a CPU no more than 1.5e14 FLOP (a training step is three forward passes), and
                 at least 3
lengths          ``autoencoder.kimg_share`` of kimg for the autoencoder, the rest for the denoiser; an epoch lies
                 between two of ``n_snapshots``
ema_kimg         10, or a twentieth of kimg if that is less
================ =================================================================================================

A value that the settings do name stays (batch, parts and checkpointing for both networks), and the others are chosen
around it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InputError
from common.files import read_json, write_json
from common.machine import Machine, describe_machine
from common.plan import Plan
from common.settings import from_dict, to_dict
from diffusion.layout import WHERE, Layout, layout_of, sizes_of_levels
from diffusion.settings import (
    AUTO,
    AutoencoderConfig,
    AutoencoderSettings,
    DenoiserSettings,
    DiffusionConfig,
    DiffusionSettings,
    check_config,
)

MACHINE = "machine.json"
MAX_ATTENDED = {"cpu": 256, "cuda": 4096}  # positions
GPU_AUTOENCODER = {2: (64, 128, 256, 256), 3: (32, 64, 128, 128)}
GPU_LATENT, GPU_PIXELS = (256, 512, 768), (64, 128, 256, 256)
CPU_BASES = (8, 16, 24, 32, 48, 64)
CPU_MULTIPLES, CPU_LATENT_MULTIPLES = (1, 2, 4, 4), (1, 2, 2)
SMALLEST_BASE = 8
MAX_CPU_FLOP_PER_IMAGE = 1.25e9  # of a forward pass
CPU_FLOP = 1.5e14  # two hours of two cores at 20 GFLOP/s
CPU_BATCH, GPU_BATCH_SHARE, GPU_AUTOENCODER_BATCH, GPU_DENOISER_BATCH = 8, 0.75, 2, 4
DIVISIBLE_BATCH = 4  # larger batches are multiples of it, so that they have parts
BUDGET_SHARE = 0.8  # of the memory of the machine
MAX_RATE, DENOISER_RATE, AUTOENCODER_RATE = 1e-3, 0.025, 0.032
PERCEPTUAL_WEIGHT = {2: 0.5, 3: 0.125}
MIN_KIMG, MIN_CPU_KIMG = 1.0, 3.0
MAX_EMA_KIMG, EMA_SHARE = 10.0, 0.05


@dataclass(frozen=True)
class _Given:
    """What the settings follow from."""

    plan: Plan
    layout: Layout
    config: DiffusionConfig
    machine: Machine
    precision: str
    n_images: int
    n_data_channels: int  # of images and labels


@dataclass(frozen=True)
class _Fit:
    """What may change so that a training fits into the memory."""

    channels: tuple[int, ...]
    batch_size: int
    n_accumulated: int
    checkpointing: bool

    @property
    def n_at_once(self) -> int:
        return math.ceil(self.batch_size / self.n_accumulated)


def derive_settings(
    plan: Plan,
    n_images: int,
    n_channels: int,
    kimg: float | None,
    config: DiffusionConfig,
    machine: Machine,
    n_label_channels: int = 0,
) -> DiffusionSettings:
    """Apply the table at the top.

    Args:
        n_images: training images, or cases.
        n_channels: of an image; labels that are generated with it come on top.
        kimg: thousand images shown, in both trainings together; None: auto.

    Raises:
        InputError: settings no training can use, a plan too short for them, or nothing fits into the memory.
    """
    check_config(config)
    precision = config.precision
    if precision == AUTO:
        precision = "bf16" if machine.kind == "cuda" and machine.has_bf16 else "fp32"
    layout = layout_of(plan, config)
    given = _Given(plan, layout, config, machine, precision, n_images, n_channels + n_label_channels)
    autoencoder = None if config.autoencoder is None else _autoencoder(given, config.autoencoder)
    denoiser, fit = _denoiser(given, autoencoder)
    settings = DiffusionSettings(
        config=config,
        image_size=layout.image_size,
        n_channels=n_channels,
        n_label_channels=n_label_channels,
        autoencoder=autoencoder,
        denoiser=denoiser,
        batch_size=fit.batch_size,
        n_accumulated=fit.n_accumulated,
        precision=precision,
        learning_rate=_rate(config.learning_rate, DENOISER_RATE, denoiser.channels),
        kimg=0.0,
        ema_kimg=0.0,
        n_epochs=0,
        steps_per_epoch=0,
    )
    if kimg is None and machine.kind == "cuda":
        kimg = max(MIN_KIMG, float(n_images))
    elif kimg is None:
        from diffusion.cost import training_flop

        affordable = float(math.floor(CPU_FLOP / training_flop(settings) / 1000))
        kimg = max(MIN_CPU_KIMG, min(float(n_images), affordable))
    return with_length(settings, kimg)


def machine_of(out: Path, device: str) -> Machine:
    """The machine this process runs on, written to ``machine.json`` in ``out``.

    There it is read again: a training that is resumed on another machine goes on as it began.
    """
    if not (out / MACHINE).is_file():
        write_json(out / MACHINE, to_dict(describe_machine(device)))
    return from_dict(Machine, read_json(out / MACHINE))


def with_length(settings: DiffusionSettings, kimg: float) -> DiffusionSettings:
    """The same networks trained on ``kimg`` thousand images, autoencoder and denoiser together."""
    config, autoencoder = settings.config, settings.autoencoder
    share = config.autoencoder.kimg_share if config.autoencoder is not None else 0.0
    n_epochs = config.n_snapshots
    if autoencoder is not None and config.autoencoder is not None:
        n_steps = _steps_per_epoch(kimg * share, autoencoder.batch_size, n_epochs)
        joins = int(config.autoencoder.adversarial_from * n_epochs * n_steps)
        autoencoder = replace(autoencoder, n_epochs=n_epochs, steps_per_epoch=n_steps, adversarial_from_step=joins)
    return replace(
        settings,
        autoencoder=autoencoder,
        kimg=float(kimg),
        ema_kimg=float(min(MAX_EMA_KIMG, EMA_SHARE * kimg) if config.ema_kimg is None else config.ema_kimg),
        n_epochs=n_epochs,
        steps_per_epoch=_steps_per_epoch(kimg * (1 - share), settings.batch_size, n_epochs),
    )


def _rate(given: float | str, over_width: float, channels: Sequence[int]) -> float:
    return min(MAX_RATE, over_width / channels[0]) if isinstance(given, str) else float(given)


def _steps_per_epoch(kimg: float, batch_size: int, n_epochs: int) -> int:
    n_steps = math.ceil(round(kimg * 1000, 6) / batch_size)
    return max(1, math.ceil(n_steps / n_epochs))


def _widths(multiples: Sequence[int], n_levels: int, base: int = 1) -> tuple[int, ...]:
    """``n_levels`` widths, the last one repeated if need be."""
    return tuple(base * multiples[min(level, len(multiples) - 1)] for level in range(n_levels))


def _affordable(multiples: Sequence[int], n_levels: int, flop: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The widest of CPU_BASES at which an image costs little enough for a CPU, else the narrowest."""
    costs_little = bisect.bisect_right(
        CPU_BASES, MAX_CPU_FLOP_PER_IMAGE, key=lambda base: flop(_widths(multiples, n_levels, base))
    )
    return _widths(multiples, n_levels, CPU_BASES[max(0, costs_little - 1)])


def _autoencoder(given: _Given, own: AutoencoderConfig) -> AutoencoderSettings:
    """As wide as the machine can compute, then as its memory allows; its length comes later."""
    from diffusion.cost import autoencoder_bytes, autoencoder_flop

    layout, n_axes = given.layout, given.plan.n_axes
    n_levels = len(layout.autoencoder_strides) + 1
    settings = AutoencoderSettings(
        kind=own.kind,
        n_channels=given.n_data_channels,
        channels=_widths(GPU_AUTOENCODER[n_axes], n_levels) if isinstance(own.channels, str) else own.channels,
        latent_channels=own.latent_channels,
        n_res_blocks=own.n_res_blocks,
        codebook_size=own.codebook_size,
        first_kernel=layout.first_kernel,
        strides=layout.autoencoder_strides,
        kernel_sizes=layout.autoencoder_kernels,
        perceptual=own.perceptual,
        perceptual_weight=(
            PERCEPTUAL_WEIGHT[n_axes] if isinstance(own.perceptual_weight, str) else float(own.perceptual_weight)
        ),
        adversarial_weight=own.adversarial_weight,
        kl_weight=own.kl_weight,
        learning_rate=0.0,
        batch_size=_batch(given, GPU_AUTOENCODER_BATCH),
        n_accumulated=1,
        checkpointing=False,
        n_epochs=0,
        steps_per_epoch=0,
        adversarial_from_step=0,
    )
    channels, size = settings.channels, layout.image_size
    if isinstance(own.channels, str) and given.machine.kind == "cpu":
        channels = _affordable(CPU_MULTIPLES, n_levels, lambda w: autoencoder_flop(replace(settings, channels=w), size))

    def n_bytes(fit: _Fit) -> float:
        tried = replace(settings, channels=fit.channels, checkpointing=fit.checkpointing)
        return autoencoder_bytes(tried, size, given.precision, fit.n_at_once)

    fit = _fit(given, settings.batch_size, channels, not isinstance(own.channels, str), n_bytes)
    return replace(
        settings,
        channels=fit.channels,
        checkpointing=fit.checkpointing,
        batch_size=fit.batch_size,
        n_accumulated=fit.n_accumulated,
        learning_rate=_rate(own.learning_rate, AUTOENCODER_RATE, fit.channels),
    )


def _denoiser(given: _Given, autoencoder: AutoencoderSettings | None) -> tuple[DenoiserSettings, _Fit]:
    """The same for the denoiser, whose batch belongs to the settings of the whole training."""
    from diffusion.cost import denoiser_bytes, denoiser_flop

    config, layout, latent = given.config, given.layout, given.config.autoencoder
    size = layout.denoised_size
    levels = sizes_of_levels(size, layout.denoiser_strides)
    max_attended = MAX_ATTENDED[given.machine.kind]
    widths = _widths(GPU_PIXELS if latent is None else GPU_LATENT, len(levels))
    settings = DenoiserSettings(
        n_channels=given.n_data_channels if latent is None else latent.latent_channels,
        channels=widths if isinstance(config.channels, str) else config.channels,
        n_res_blocks=config.n_res_blocks,
        first_kernel=layout.denoiser_first_kernel,
        strides=layout.denoiser_strides,
        kernel_sizes=layout.denoiser_kernels,
        attention=tuple(level > 0 and math.prod(edges) <= max_attended for level, edges in enumerate(levels)),
    )
    channels = settings.channels
    if isinstance(config.channels, str) and given.machine.kind == "cpu":
        multiples = CPU_MULTIPLES if latent is None else CPU_LATENT_MULTIPLES
        channels = _affordable(multiples, len(levels), lambda w: denoiser_flop(replace(settings, channels=w), size))

    def n_bytes(fit: _Fit) -> float:
        tried = replace(settings, channels=fit.channels, checkpointing=fit.checkpointing)
        return denoiser_bytes(tried, size, given.precision, fit.n_at_once, autoencoder, layout.image_size)

    batch_size = _batch(given, GPU_DENOISER_BATCH)
    fit = _fit(given, batch_size, channels, not isinstance(config.channels, str), n_bytes)
    return replace(settings, channels=fit.channels, checkpointing=fit.checkpointing), fit


def _batch(given: _Given, of_volumes: int) -> int:
    asked, n_parts = given.config.batch_size, given.config.n_accumulated
    if not isinstance(asked, str):
        if not isinstance(n_parts, str) and asked % n_parts:
            problem = f"a batch of {asked} has no {n_parts} equal parts"
            raise InputError(problem, where=f"{WHERE}.n_accumulated", fix="give a divisor of batch_size, or auto")
        return int(asked)
    if given.machine.kind == "cpu":
        wanted = CPU_BATCH
    else:
        wanted = int(GPU_BATCH_SHARE * given.plan.batch_size) if given.plan.n_axes == 2 else of_volumes
    batch_size = max(2, min(wanted, given.n_images))
    if batch_size > DIVISIBLE_BATCH:
        batch_size -= batch_size % DIVISIBLE_BATCH
    return batch_size if isinstance(n_parts, str) else math.ceil(batch_size / n_parts) * int(n_parts)


def _fit(
    given: _Given,
    batch_size: int,
    channels: tuple[int, ...],
    are_widths_given: bool,
    n_bytes: Callable[[_Fit], float],
) -> _Fit:
    """The first that fits, of the widest widths at which any does."""
    memory_gib = given.machine.memory_gib
    budget, needed = BUDGET_SHARE * memory_gib * 2**30, math.inf
    for widths in [channels] if are_widths_given else _halvings(channels):
        candidates = _candidates(given.config, batch_size, widths)
        if widths != channels and (needed := n_bytes(candidates[-1])) > budget:
            continue  # nothing of these widths fits: measuring the rest would take its time
        for tried in candidates:
            needed = n_bytes(tried)
            if needed <= budget:
                return tried
    problem = (
        f"images of {given.layout.image_size} with widths {widths} need {needed / 2**30:.1f} GiB, "
        f"and {BUDGET_SHARE:g} of the {memory_gib:g} GiB here are {budget / 2**30:.1f}"
    )
    raise InputError(problem, where=WHERE, fix="use a machine with more memory, or leave more of them on auto")


def _candidates(config: DiffusionConfig, batch_size: int, channels: tuple[int, ...]) -> list[_Fit]:
    """Ways to compute a batch with these widths, each with less memory than the one before."""
    checkpointing = [False, True] if isinstance(config.checkpointing, str) else [config.checkpointing]
    if isinstance(config.n_accumulated, str):
        parts = [1]  # divisors of the batch, each at least twice the one before
        while parts[-1] < batch_size:
            parts.append(next(n for n in range(2 * parts[-1], batch_size + 1) if batch_size % n == 0))
        found = [_Fit(channels, batch_size, 1, kept) for kept in checkpointing]
        return found + [replace(found[-1], n_accumulated=n) for n in parts[1:]]
    n_parts, batches = int(config.n_accumulated), [batch_size]
    while isinstance(config.batch_size, str) and batches[-1] >= 4 and batches[-1] / 2 % n_parts == 0:
        batches.append(batches[-1] // 2)
    return [_Fit(channels, n, n_parts, kept) for n in batches for kept in checkpointing]


def _halvings(channels: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield channels
    while channels[0] % 2 == 0 and channels[0] // 2 >= SMALLEST_BASE:
        channels = tuple(n // 2 for n in channels)
        yield channels
