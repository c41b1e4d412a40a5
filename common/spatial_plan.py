"""The nnU-Net plan of images or of volumes as plain data: what size, levels, kernels and intensities follow from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import common.plan
from common.errors import InputError
from common.plan import PLANS_FILE, Plan, resolved_configuration, strides_and_kernels

Size = tuple[int, ...]

MOST_FEATURES = {2: 512, 3: 320}  # of nnU-Net's U-Net where the plan does not say
FEWEST_FEATURES = 32  # of its first stage
AS_PLANNED = "plan the dataset with nnU-Net again"


@dataclass(frozen=True)
class SpatialPlan:
    """A configuration of an nnU-Net plan; sizes, strides, kernels and spacings are in the order of the array's axes."""

    configuration: str  # "2d", "3d_fullres" ...
    patch_size: Size  # voxels
    median_image_size: Size  # voxels at the plan's spacing
    strides: tuple[Size, ...]  # into each stage; the first are all 1
    kernel_sizes: tuple[Size, ...]  # of each stage
    spacing_mm: tuple[float, ...]  # of the array's axes
    transpose_forward: tuple[int, ...]  # from the file's axes to the array's
    transpose_backward: tuple[int, ...]
    normalization_schemes: tuple[str, ...]  # one a channel
    use_mask_for_norm: tuple[bool, ...]  # one a channel
    intensity: tuple[dict[str, float], ...]  # foreground statistics of the dataset, one a channel
    batch_size: int
    features_per_stage: tuple[int, ...]
    n_channels: int
    data_identifier: str  # folder of the preprocessed cases

    @property
    def n_axes(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.patch_size)


def spatial_plan_from_json(plans: Mapping[str, Any], configuration: str, where: str = PLANS_FILE) -> SpatialPlan:
    """Read ``configuration`` of nnU-Net plans: the current layout, or v2.2's; ``inherits_from`` is followed.

    Raises:
        InputError: the configuration is not there, lacks a key, or its numbers fit no network; ``where`` is the file.
    """
    config = resolved_configuration(plans, configuration, where)
    try:
        plan = _from_configuration(plans, configuration, config)
    except KeyError as error:
        problem = f"configuration {configuration!r} has no {error.args[0]!r}"
        raise InputError(problem, where=where, fix=AS_PLANNED) from error
    _check(plan, where)
    return plan


def _from_configuration(plans: Mapping[str, Any], configuration: str, config: Mapping[str, Any]) -> SpatialPlan:
    patch_size = tuple(int(n) for n in config["patch_size"])
    strides, kernels = strides_and_kernels(config)
    n_axes, n_channels = len(patch_size), len(config["normalization_schemes"])
    intensity = plans.get("foreground_intensity_properties_per_channel", {})
    forward = tuple(int(axis) for axis in plans["transpose_forward"])
    return SpatialPlan(
        configuration=configuration,
        patch_size=patch_size,
        median_image_size=tuple(round(n) for n in config["median_image_size_in_voxels"][-n_axes:]),
        strides=tuple(_of_axes(stride, n_axes) for stride in strides),
        kernel_sizes=tuple(_of_axes(kernel, n_axes) for kernel in kernels),
        spacing_mm=tuple(float(mm) for mm in config["spacing"][-n_axes:]),
        transpose_forward=forward,
        transpose_backward=tuple(int(axis) for axis in plans.get("transpose_backward", _inverse(forward))),
        normalization_schemes=tuple(config["normalization_schemes"]),
        use_mask_for_norm=tuple(bool(flag) for flag in config["use_mask_for_norm"]),
        intensity=tuple(dict(intensity.get(str(channel), {})) for channel in range(n_channels)),
        batch_size=int(config["batch_size"]),
        features_per_stage=_features(config, len(strides), n_axes),
        n_channels=n_channels,
        data_identifier=str(config["data_identifier"]),
    )


def spatial_plan_from_2d(plan: Plan) -> SpatialPlan:
    """The pipeline's 2D plan; its images all have the patch's size."""
    n_stages = len(plan.strides)
    return SpatialPlan(
        configuration="2d",
        patch_size=plan.patch_size_px,
        median_image_size=plan.patch_size_px,
        strides=plan.strides,
        kernel_sizes=plan.kernel_sizes,
        spacing_mm=plan.spacing_mm,
        transpose_forward=plan.transpose_forward,
        transpose_backward=_inverse(plan.transpose_forward),
        normalization_schemes=plan.normalization_schemes,
        use_mask_for_norm=plan.use_mask_for_norm,
        intensity=plan.intensity,
        batch_size=plan.batch_size,
        features_per_stage=_features({}, n_stages, 2),
        n_channels=plan.n_channels,
        data_identifier="nnUNetPlans_2d",
    )


def square_plan(size_px: int) -> SpatialPlan:
    """Of square grey images where there is no dataset to plan from; InputError unless a power of two from 8 on."""
    return spatial_plan_from_2d(common.plan.square_plan(size_px))


def _of_axes(value: Any, n_axes: int) -> Size:
    """A stage's stride or kernel; one number stands for every axis."""
    return (int(value),) * n_axes if isinstance(value, int) else tuple(int(n) for n in value)


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


def _features(config: Mapping[str, Any], n_stages: int, n_axes: int) -> tuple[int, ...]:
    architecture = config.get("architecture", {}).get("arch_kwargs", {})
    if "features_per_stage" in architecture:
        given = architecture["features_per_stage"]
        return (given,) * n_stages if isinstance(given, int) else tuple(int(n) for n in given)
    fewest = int(config.get("UNet_base_num_features", FEWEST_FEATURES))
    most = int(config.get("unet_max_num_features", MOST_FEATURES[n_axes]))
    return tuple(min(most, fewest * 2**stage) for stage in range(n_stages))


def _check(plan: SpatialPlan, where: str) -> None:
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
            raise InputError(problem, where=where, fix=AS_PLANNED)
