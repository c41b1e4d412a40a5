"""What ``auto`` stands for in a generator's settings: widths, batch, precision and length from plan, data and machine.

One pure function, ``choose``, decides; the same three things give the same choice everywhere.

============== ============================================= ==================================================
setting        on a GPU                                      on a CPU
============== ============================================= ==================================================
channel_base   16384; 32768 from 512 px on                   the largest power of two from 128 to 16384 at which
                                                             an image costs at most 2 GFLOP of training
batch_size     the largest power of two from 2 to 32 that    the same, to 8
               is no more than the images, and at most
               2^20 pixels
(group)        minibatch_std_group as set (4), or its largest divisor that divides the batch
memory         while the estimate exceeds the budget, first the batch is halved (to 4), then channel_base, then
               the batch (to 2)
precision      bf16 where the device computes in it, else fp32
kimg           as many as images, at least 200, at most      the same, but no more than two hours of two cores
               10,000                                        (1.5 * 10^14 FLOP), and at least 20
============== ============================================= ==================================================

A value that the settings do name stays, and the others are chosen around it. Cost and memory are estimates, for fp32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json, write_json
from common.machine import Machine, describe_machine
from common.plan import Pair, Plan
from common.settings import from_dict, to_dict
from gan.settings import AUTO, GanConfig, GanSettings, derive_settings

AUTO_KEYS = ("batch_size", "channel_base", "precision")
CHOICE = "auto.json"
GPU_BASE, GPU_BASE_LARGE, LARGE_PX = 16384, 32768, 512
SMALLEST_BASE = 128
MOST_CPU_FLOP_PER_IMAGE = 2e9
CPU_FLOP = 1.5e14  # two hours of two cores at 20 GFLOP/s
MOST_IMAGES = {"cpu": 8, "cuda": 32}
MOST_PIXELS = 2**20  # of a batch
SHORTEST_KIMG, LONGEST_KIMG, SHORTEST_CPU_KIMG = 200.0, 10_000.0, 20.0
USUAL_SMALLEST_BATCH = 4
BUDGET_SHARE = 0.8  # of the memory there is
TRAINING_OVER_FORWARD = 6.6  # amortised cost of an image over one pass of both networks (204 / 31 GFLOP at 64 px)
TENSORS_PER_MAP = 16  # float32 copies of each feature map alive at the peak, in R1; 9 to 15 measured at 32 to 128 px
BASELINE_BYTES = 0.6 * 2**30


@dataclass(frozen=True)
class Choice:
    """Values for the settings that were ``auto``, and the length."""

    batch_size: int
    channel_base: int
    precision: str
    minibatch_std_group: int
    kimg: float


def choose(
    plan: Plan, n_images: int, n_channels: int, machine: Machine, config: GanConfig, auto: frozenset[str]
) -> Choice:
    """The table at the top; ``config`` holds what is given, ``auto`` names the keys out of AUTO_KEYS that are not.

    Raises:
        InputError: nothing fits into the memory, or the settings are ones no training can use.
    """
    is_gpu, n_pixels = machine.kind == "cuda", math.prod(plan.patch_size_px)
    # Batches: powers of two, largest first, to 2.
    batches = [config.batch_size]
    if "batch_size" in auto:
        most = min(MOST_IMAGES[machine.kind], max(2, n_images), max(2, MOST_PIXELS // n_pixels))
        batches = [2**power for power in range(most.bit_length() - 1, 0, -1)]
    # Widths: halvings, largest first, to SMALLEST_BASE; on a CPU those at which an image is affordable.
    bases = [config.channel_base]
    if "channel_base" in auto:
        largest = GPU_BASE_LARGE if is_gpu and n_pixels >= LARGE_PX**2 else GPU_BASE
        bases = [largest // 2**power for power in range((largest // SMALLEST_BASE).bit_length())]
        if not is_gpu:
            tried = [derive_settings(plan, 2, n_channels, None, replace(config, channel_base=base)) for base in bases]
            costs = zip(bases, map(training_flop, tried), strict=True)
            bases = [base for base, cost in costs if cost <= MOST_CPU_FLOP_PER_IMAGE] or bases[-1:]
    # The first that fits into the memory: batches down to 4, then widths, then the rest of the batches.
    usual = [batch for batch in batches if batch >= USUAL_SMALLEST_BATCH] or batches[:1]
    candidates = [(batch, bases[0]) for batch in usual] + [(usual[-1], base) for base in bases[1:]]
    candidates += [(batch, bases[-1]) for batch in batches if batch < usual[-1]]
    for batch_size, base in candidates:
        group = math.gcd(batch_size, config.minibatch_std_group) if "batch_size" in auto else config.minibatch_std_group
        changed = replace(config, batch_size=batch_size, channel_base=base, minibatch_std_group=group)
        derived = derive_settings(plan, n_images, n_channels, None, changed)
        if training_bytes(derived) <= BUDGET_SHARE * machine.memory_gib * 2**30:
            break
    else:
        raise InputError(
            f"{plan.patch_size_px} px do not fit into {machine.memory_gib:.1f} GiB",
            where="generator.settings",
            fix="use a machine with more memory, or set data.max_size_px",
        )
    # The length: as many kimg as images within limits, and on a CPU no more than CPU_FLOP.
    kimg = min(max(float(n_images), SHORTEST_KIMG), LONGEST_KIMG)
    if not is_gpu:
        affordable = float(math.floor(CPU_FLOP / training_flop(derived) / 1000))
        kimg = min(kimg, max(SHORTEST_CPU_KIMG, affordable))
    precision = ("bf16" if machine.has_bf16 else "fp32") if "precision" in auto else config.precision
    return Choice(batch_size, base, precision, group, kimg)


def training_flop(settings: GanSettings) -> float:
    """Floating-point operations of the convolutions for one image of a training, lazy regularisations included."""
    return TRAINING_OVER_FORWARD * sum(layer.flop for layer in _layers(settings))


def training_bytes(settings: GanSettings) -> float:
    """Peak memory of a training in float32: weights, gradients, Adam, average, feature maps."""
    layers = _layers(settings)
    weights = 5 * sum(layer.n_weights for layer in layers)
    maps = TENSORS_PER_MAP * settings.config.batch_size * sum(layer.n_outputs for layer in layers)
    return BASELINE_BYTES + 4.0 * (weights + maps)


@dataclass(frozen=True)
class _Layer:
    n_weights: int
    n_outputs: int  # of one image
    flop: float


def _layers(settings: GanSettings) -> list[_Layer]:
    """Every convolution of both networks, the mapping and the last two layers of the discriminator."""
    config, channels, sizes = settings.config, settings.channels, settings.resolutions
    kernels, n_last = settings.kernel_sizes, channels[-1]

    def conv(n_in: int, n_out: int, kernel: Pair, computed_on: Pair, out: Pair) -> _Layer:
        n_weights = n_in * n_out * math.prod(kernel)
        return _Layer(n_weights, n_out * math.prod(out), 2.0 * n_weights * math.prod(computed_on))

    layers = [_Layer(config.z_dim * config.w_dim * config.mapping_layers, 0, 0.0)]
    layers.append(conv(n_last, n_last, kernels[-1], sizes[-1], sizes[-1]))
    for (large, small), kernel, kernel_down in zip(
        itertools.pairwise(range(len(sizes))), kernels[:-1], kernels[1:], strict=True
    ):
        n_wide, n_deep = channels[large], channels[small]
        layers += [
            conv(n_deep, n_wide, kernel, sizes[small], sizes[large]),
            conv(n_wide, n_wide, kernel, sizes[large], sizes[large]),
            conv(n_wide, settings.n_channels, (1, 1), sizes[large], sizes[large]),
            conv(n_wide, n_wide, (3, 3), sizes[large], sizes[large]),
            conv(n_wide, n_deep, kernel_down, sizes[small], sizes[small]),
            conv(n_wide, n_deep, (1, 1), sizes[small], sizes[small]),
        ]
    layers.append(conv(settings.n_channels, channels[0], (1, 1), sizes[0], sizes[0]))
    layers.append(conv(n_last + 1, n_last, (3, 3), sizes[-1], sizes[-1]))
    layers.append(conv(n_last * math.prod(sizes[-1]), n_last, (1, 1), (1, 1), (1, 1)))
    return layers


def split_auto(settings: Mapping[str, Any], where: str) -> tuple[GanConfig, frozenset[str]]:
    """The settings with defaults in the place of ``auto``, and the keys that were ``auto``.

    Raises:
        TypeError: unknown keys, wrong types, or ``auto`` where there is none.
    """
    auto = frozenset(key for key in AUTO_KEYS if settings.get(key) == AUTO)
    return from_dict(GanConfig, {key: value for key, value in settings.items() if key not in auto}, where), auto


def complete(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings with every key, ``auto`` kept."""
    config, auto = split_auto(settings, where)
    return {**to_dict(config), **dict.fromkeys(auto, AUTO)}


def resolve(
    settings: Mapping[str, Any], kimg: float | None, plan: Plan, n_images: int, n_channels: int, out: Path, device: str
) -> GanSettings:
    """Everything a training needs; what ``auto`` became is written to ``auto.json`` in ``out`` and used again there.

    So a training that is resumed on another machine goes on as it began.
    """
    config, auto = split_auto(settings, "generator.settings")
    is_length_chosen = kimg is None and config.auto_kimg == "device"
    if auto or is_length_chosen:
        if not (out / CHOICE).is_file():
            chosen = choose(plan, n_images, n_channels, describe_machine(device), config, auto)
            write_json(out / CHOICE, to_dict(chosen))
        values = read_json(out / CHOICE)
        length = values.pop("kimg")
        config = replace(config, **values)
        kimg = length if is_length_chosen else kimg
    return derive_settings(plan, n_images, n_channels, kimg, config)
