"""The standard architecture, for measurements that have no dataset to plan from."""

from __future__ import annotations

from common.plan import square_plan
from gan.settings import GanConfig, GanSettings, derive_settings


def square_settings(size_px: int, n_channels: int, config: GanConfig) -> GanSettings:
    """Of the standard architecture, to compute with and not to train to an end."""
    return derive_settings(square_plan(size_px), 2, n_channels, 1.0, config)
