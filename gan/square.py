"""The standard architecture, for measurements that have no dataset to plan from."""

from __future__ import annotations

import math

from common.errors import InputError
from common.plan import Pair, Plan
from gan.settings import GanConfig, GanSettings, derive_settings

BOTTLENECK_PX = 4


def square_plan(size_px: int) -> Plan:
    """3x3 kernels, and strides of 2 down to 4 x 4.

    Raises:
        InputError: ``size_px`` is no power of two from 8 on.
    """
    n_halvings = max(1, round(math.log2(max(1, size_px) / BOTTLENECK_PX)))
    if size_px != BOTTLENECK_PX * 2**n_halvings:
        raise InputError(f"{size_px} px", where="the side of the images", fix="use a power of two from 8")
    strides: tuple[Pair, ...] = ((1, 1), *[(2, 2)] * n_halvings)
    kernels: tuple[Pair, ...] = ((3, 3),) * len(strides)
    scheme = ("ZScoreNormalization",)
    return Plan((size_px, size_px), strides, kernels, (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)


def square_settings(size_px: int, n_channels: int, config: GanConfig) -> GanSettings:
    """Of the standard architecture, to compute with and not to train to an end."""
    return derive_settings(square_plan(size_px), 2, n_channels, 1.0, config)
