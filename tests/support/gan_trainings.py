"""Tiny trainings of StyleGAN2 on noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from common.checkpoints import save_tensors
from common.plan import Plan
from common.settings import to_dict
from gan.model import GeneratorNetwork
from gan.record import TIMED
from gan.settings import GanConfig, GanSettings, derive_settings

TINY = GanConfig(batch_size=2, channel_base=64, channel_max=8, z_dim=8, w_dim=8, n_snapshots=4)


def plan_of(size: tuple[int, int], strides: list[tuple[int, int]]) -> Plan:
    scheme = ("ZScoreNormalization",)
    kernels = tuple((3, 3) for _ in range(len(strides) + 1))
    return Plan(size, ((1, 1), *strides), kernels, (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)


def tiny_settings(n_channels: int = 1, n_steps: int = 16, config: GanConfig = TINY) -> GanSettings:
    kimg = n_steps * config.batch_size / 1000
    return derive_settings(plan_of((10, 16), [(2, 2), (1, 2)]), 5, n_channels, kimg, config)


def noise_images(n_channels: int = 1, dtype: type = np.uint8, n_images: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, (n_images, n_channels, 10, 16), dtype=dtype, endpoint=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its relative name, without those that hold times."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): path.read_bytes() for name, path in sorted(files.items()) if name.parts[0] not in TIMED}


class Stop(Exception):
    pass


def stop_after(n_steps: int):
    calls = []

    def progress(done: float, total: float, unit: str) -> None:
        calls.append(done)
        if len(calls) == n_steps:
            raise Stop

    return progress


def untrained(path: Path, n_channels: int, dtype: str, size: tuple[int, int] = (10, 16)) -> Path:
    """A generator whose noise is on, so that every part of an image's draw shows."""
    torch.manual_seed(0)
    config = GanConfig(**{**TINY.__dict__, "channel_base": 700, "channel_max": 37})
    settings = derive_settings(plan_of(size, [(2, 2), (1, 2)]), 5, n_channels, 1.0, config)
    tensors = {
        name: torch.ones_like(tensor) if name.endswith("noise_strength") else tensor
        for name, tensor in GeneratorNetwork(settings).state_dict().items()
    }
    save_tensors(path, tensors, {"settings": to_dict(settings), "seed": 1, "dtype": dtype})
    return path


def standard_count(size: int, channels: dict[int, int], n_colours: int, z_dim: int, w_dim: int) -> tuple[int, int]:
    """Parameters of StyleGAN2's skip generator and residual discriminator, written out layer by layer."""
    sizes = [2**power for power in range(2, int(math.log2(size)) + 1)]

    def styled(n_in: int, n_out: int) -> int:  # convolution, affine of the style, noise strength, bias
        return 9 * n_in * n_out + (w_dim + 1) * n_in + 1 + n_out

    generator = (z_dim + 1) * w_dim + (w_dim + 1) * w_dim + 16 * channels[4]
    discriminator = (n_colours + 1) * channels[size]
    for resolution in sizes:
        n_out = channels[resolution]
        generator += styled(n_out, n_out) + n_out * n_colours + (w_dim + 1) * n_out + n_colours
        if resolution > 4:
            n_coarse = channels[resolution // 2]
            generator += styled(n_coarse, n_out)
            discriminator += 9 * n_out**2 + n_out + 9 * n_out * n_coarse + n_coarse + n_out * n_coarse
    last = channels[4]
    discriminator += 9 * (last + 1) * last + last + (16 * last + 1) * last + last + 1
    return generator, discriminator
