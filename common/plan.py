"""The nnU-Net plan as plain data: what generators, slices and labelling derive their settings from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json

Pair = tuple[int, int]
PLANS_FILE = "nnUNetPlans.json"
BOTTLENECK_PX = 4


@dataclass(frozen=True)
class Plan:
    """The 2D configuration of an nnU-Net plan; every pair is (height, width), as in nnU-Net."""

    patch_size_px: Pair
    strides: tuple[Pair, ...]  # first is always (1, 1); one entry a stage
    kernel_sizes: tuple[Pair, ...]  # one entry a stage
    spacing_mm: tuple[float, float]  # in-plane target spacing after the plan's transposition
    transpose_forward: tuple[int, ...]
    normalization_schemes: tuple[str, ...]  # one a channel
    use_mask_for_norm: tuple[bool, ...]  # one a channel
    intensity: tuple[dict[str, float], ...]  # foreground statistics of the dataset, one a channel
    batch_size: int

    @property
    def n_channels(self) -> int:
        """Image channels."""
        return len(self.normalization_schemes)


def plan_from_json(plans: Mapping[str, Any], configuration: str = "2d") -> Plan:
    """Read nnU-Net plans of the current layout (``architecture.arch_kwargs``) or of v2.2 (flat keys).

    Raises:
        InputError: there is no such configuration.
    """
    config = resolved_configuration(plans, configuration)
    strides, kernels = strides_and_kernels(config)
    n_channels = len(config["normalization_schemes"])
    intensity = plans.get("foreground_intensity_properties_per_channel", {})
    return Plan(
        patch_size_px=_pair(config["patch_size"]),
        strides=tuple(_pair(stride) for stride in strides),
        kernel_sizes=tuple(_pair(kernel) for kernel in kernels),
        spacing_mm=(float(config["spacing"][-2]), float(config["spacing"][-1])),
        transpose_forward=tuple(int(axis) for axis in plans["transpose_forward"]),
        normalization_schemes=tuple(config["normalization_schemes"]),
        use_mask_for_norm=tuple(bool(flag) for flag in config["use_mask_for_norm"]),
        intensity=tuple(dict(intensity.get(str(channel), {})) for channel in range(n_channels)),
        batch_size=int(config["batch_size"]),
    )


def resolved_configuration(plans: Mapping[str, Any], configuration: str, where: str = PLANS_FILE) -> dict[str, Any]:
    """A configuration as nnU-Net reads it: what it lacks comes from the one that it names in ``inherits_from``.

    Raises:
        InputError: it, or one it inherits from, is not there, or they inherit from each other; ``where`` is the file.
    """
    known, chain, name = plans.get("configurations", {}), list[str](), configuration
    resolved: dict[str, Any] = {}
    while name is not None:
        if name in chain:
            problem = f"configurations inherit from each other: {' -> '.join([*chain, name])}"
            raise InputError(problem, where=where, fix="remove one inherits_from of them")
        if name not in known:
            named = f", which {chain[-1]!r} inherits from," if chain else ""
            there = ", ".join(sorted(known)) or "none"
            fix = f"choose one that is there ({there}), or plan the dataset with nnU-Net again"
            raise InputError(f"configuration {name!r}{named} is not in the plans", where=where, fix=fix)
        chain.append(name)
        resolved = {**known[name], **resolved}
        name = known[name].get("inherits_from")
    resolved.pop("inherits_from", None)
    return resolved


def strides_and_kernels(config: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """As they stand in a resolved configuration, one entry a stage: the current layout, or v2.2's flat keys."""
    architecture = config.get("architecture", {}).get("arch_kwargs")
    strides = architecture["strides"] if architecture else config["pool_op_kernel_sizes"]
    kernels = architecture["kernel_sizes"] if architecture else config["conv_kernel_sizes"]
    return list(strides), list(kernels)


def load_plan(path: Path, configuration: str = "2d") -> Plan:
    """Read a plans JSON file."""
    return plan_from_json(read_json(path), configuration)


def square_plan(size_px: int) -> Plan:
    """The standard architecture, where there is no dataset to plan from: 3x3 kernels, strides of 2 down to 4 x 4.

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


def _pair(values: Any) -> Pair:
    height, width = values
    return int(height), int(width)
