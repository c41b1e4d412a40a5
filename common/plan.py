"""The nnU-Net plan of images or volumes as plain data: generators, slices and networks derive their sizes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json

Size = tuple[int, ...]
Pair = tuple[int, int]

PLANS_FILE = "nnUNetPlans.json"
BOTTLENECK_PX = 4
PLAN_AGAIN = "plan the dataset with nnU-Net again"


@dataclass(frozen=True)
class Plan:
    """One configuration of an nnU-Net plan; all values of a size are in the order of the (transposed) array's axes."""

    patch_size: Size  # voxels: (height, width), or (depth, height, width)
    strides: tuple[Size, ...]  # into each stage; the first are all 1
    kernel_sizes: tuple[Size, ...]  # of each stage
    spacing_mm: tuple[float, ...]  # of the array's axes
    transpose_forward: tuple[int, ...]  # from the file's axes to the array's
    normalization_schemes: tuple[str, ...]  # one a channel
    use_mask_for_norm: tuple[bool, ...]  # one a channel
    intensity: tuple[dict[str, float], ...]  # foreground statistics of the dataset, one a channel
    batch_size: int
    median_image_size: Size = ()  # voxels at the plan's spacing; empty where there is no dataset
    data_identifier: str = ""  # folder of the preprocessed cases
    configuration: str = "2d"  # or "3d_fullres" ...

    @property
    def n_axes(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.patch_size)

    @property
    def n_channels(self) -> int:
        """Image channels."""
        return len(self.normalization_schemes)

    @property
    def patch_size_px(self) -> Pair:
        """(height, width) of a 2D plan."""
        height, width = self.patch_size
        return height, width

    @property
    def transpose_backward(self) -> tuple[int, ...]:
        """From the array's axes to the file's."""
        return tuple(self.transpose_forward.index(axis) for axis in range(len(self.transpose_forward)))


def load_plan(path: Path, configuration: str = "2d") -> Plan:
    """Read a configuration of a plans JSON file; InputError as of ``plan_from_json``."""
    return plan_from_json(read_json(path), configuration, str(path))


def plan_from_json(plans: Mapping[str, Any], configuration: str = "2d", where: str = PLANS_FILE) -> Plan:
    """Read ``configuration`` of nnU-Net plans: the current layout, or v2.2's flat keys; ``inherits_from`` is followed.

    Raises:
        InputError: the configuration is missing, lacks a key, or its numbers fit no network; ``where`` is the file.
    """
    config = _resolved_configuration(plans, configuration, where)
    try:
        n_axes, n_channels = len(config["patch_size"]), len(config["normalization_schemes"])
        architecture = config.get("architecture", {}).get("arch_kwargs")
        strides = architecture["strides"] if architecture else config["pool_op_kernel_sizes"]
        kernels = architecture["kernel_sizes"] if architecture else config["conv_kernel_sizes"]
        intensity = plans.get("foreground_intensity_properties_per_channel", {})
        plan = Plan(
            patch_size=tuple(int(n) for n in config["patch_size"]),
            strides=tuple(_of_axes(stride, n_axes) for stride in strides),
            kernel_sizes=tuple(_of_axes(kernel, n_axes) for kernel in kernels),
            spacing_mm=tuple(float(mm) for mm in config["spacing"][-n_axes:]),
            transpose_forward=tuple(int(axis) for axis in plans["transpose_forward"]),
            normalization_schemes=tuple(config["normalization_schemes"]),
            use_mask_for_norm=tuple(bool(flag) for flag in config["use_mask_for_norm"]),
            intensity=tuple(dict(intensity.get(str(channel), {})) for channel in range(n_channels)),
            batch_size=int(config["batch_size"]),
            median_image_size=tuple(round(n) for n in config["median_image_size_in_voxels"][-n_axes:]),
            data_identifier=str(config["data_identifier"]),
            configuration=configuration,
        )
    except KeyError as error:
        problem = f"configuration {configuration!r} has no {error.args[0]!r}"
        raise InputError(problem, where=where, fix=PLAN_AGAIN) from error
    _check(plan, where)
    return plan


def square_plan(size_px: int) -> Plan:
    """The standard architecture, where there is no dataset to plan from: 3x3 kernels, strides of 2 down to 4 x 4.

    Raises:
        InputError: ``size_px`` is no power of two from 8 on.
    """
    n_halvings = max(1, round(math.log2(max(1, size_px) / BOTTLENECK_PX)))
    if size_px != BOTTLENECK_PX * 2**n_halvings:
        raise InputError(
            f"{size_px} px cannot be halved to the end", where="the side of the images", fix="use a power of two from 8"
        )
    return Plan(
        patch_size=(size_px, size_px),
        strides=((1, 1), *[(2, 2)] * n_halvings),
        kernel_sizes=((3, 3),) * (n_halvings + 1),
        spacing_mm=(1.0, 1.0),
        transpose_forward=(0, 1, 2),
        normalization_schemes=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        intensity=({},),
        batch_size=2,
    )


def _resolved_configuration(plans: Mapping[str, Any], configuration: str, where: str) -> dict[str, Any]:
    """A configuration as nnU-Net reads it: the keys that it lacks come from the one that it names in ``inherits_from``.

    Raises:
        InputError: it, or one it inherits from, is not there, or they inherit from each other.
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
            fix = f"choose one that is there ({there}), or {PLAN_AGAIN}"
            raise InputError(f"configuration {name!r}{named} is not in the plans", where=where, fix=fix)
        chain.append(name)
        resolved = {**known[name], **resolved}
        name = known[name].get("inherits_from")
    return resolved


def _of_axes(value: Any, n_axes: int) -> Size:
    """A stage's stride or kernel; one number stands for every axis."""
    return (int(value),) * n_axes if isinstance(value, int) else tuple(int(n) for n in value)


def _check(plan: Plan, where: str) -> None:
    n_axes, n_stages = plan.n_axes, len(plan.strides)
    per_axis = (plan.patch_size, plan.median_image_size, plan.spacing_mm, *plan.strides, *plan.kernel_sizes)
    checks = [
        ("patch_size", plan.patch_size, n_axes in (2, 3), "two or three axes"),
        ("patch_size", plan.patch_size, min((*plan.patch_size, *plan.median_image_size)) >= 1, "sizes of 1 or more"),
        ("strides", plan.strides, n_stages >= 1 and set(plan.strides[0]) == {1}, "strides of 1 into the first stage"),
        ("strides", plan.strides, all(min(stride) >= 1 for stride in plan.strides), "strides of 1 or more"),
        ("kernel_sizes", plan.kernel_sizes, len(plan.kernel_sizes) == n_stages, "one kernel a stage"),
        ("kernel_sizes", plan.kernel_sizes, all(k % 2 for ks in plan.kernel_sizes for k in ks), "odd kernels"),
        ("axes", per_axis, all(len(values) == n_axes for values in per_axis), f"{n_axes} values, one an axis"),
    ]
    for name, value, is_valid, expected in checks:
        if not is_valid:
            problem = f"{name} of configuration {plan.configuration!r} is {value}; expected: {expected}"
            raise InputError(problem, where=where, fix=PLAN_AGAIN)
