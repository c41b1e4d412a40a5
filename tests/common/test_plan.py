"""nnU-Net's plans as one plan for any number of axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.nnunet_plans import (
    brain,
    configuration,
    plans_of,
    small_2d,
)

from common.errors import InputError
from common.plan import plan_from_json


def flat_layout() -> dict[str, Any]:
    """Plans of nnU-Net 2.2: no ``architecture``."""
    plans = brain()
    for one in plans["configurations"].values():
        given = one.pop("architecture")["arch_kwargs"]
        one |= {"pool_op_kernel_sizes": given["strides"], "conv_kernel_sizes": given["kernel_sizes"]}
        one |= {"UNet_base_num_features": 32, "unet_max_num_features": 320}
    return plans


@pytest.mark.parametrize("configuration_name", ["2d", "3d_fullres"])
def test_the_old_layout_reads_as_the_current_one(configuration_name: str) -> None:
    old, current = flat_layout(), brain()
    assert plan_from_json(old, configuration_name) == plan_from_json(current, configuration_name)
    assert plan_from_json(old) == plan_from_json(current)


def test_a_configuration_that_inherits() -> None:
    plans = brain()
    plans["configurations"]["3d_large"] = {"inherits_from": "3d_fullres", "patch_size": [160, 160, 160]}
    plans["configurations"]["3d_larger"] = {"inherits_from": "3d_large", "batch_size": 3}
    plan, parent = (plan_from_json(plans, name) for name in ("3d_larger", "3d_fullres"))
    assert plan == replace(parent, configuration="3d_larger", patch_size=(160, 160, 160), batch_size=3)
    plans["configurations"]["2d_other"] = {"inherits_from": "2d", "batch_size": 3}
    assert plan_from_json(plans, "2d_other") == replace(plan_from_json(plans), configuration="2d_other", batch_size=3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "a -> b -> a"),
        ({"a": {"inherits_from": "a"}}, "a -> a"),
        ({"a": {"inherits_from": "gone"}}, "'gone', which 'a' inherits from,"),
        ({"b": {}}, r"'a' is not in the plans\n.*\(2d, 3d_fullres, b\)"),
        ({"a": {"inherits_from": "2d", "batch_size": 3, "patch_size": [64]}}, "two or three axes"),
        ({"a": {"normalization_schemes": []}}, "no 'patch_size'"),
    ],
)
def test_configurations_that_lead_nowhere(changed: dict[str, Any], message: str) -> None:
    plans = brain()
    plans["configurations"] |= changed
    with pytest.raises(InputError, match=message):
        plan_from_json(plans, "a")


@pytest.mark.parametrize(
    ("strides", "kernels", "message"),
    [
        ([[2, 2], [2, 2]], [[3, 3], [3, 3]], "strides of 1 into the first stage"),
        ([[1, 1], [2, 0]], [[3, 3], [3, 3]], "strides of 1 or more"),
        ([[1, 1], [2, 2]], [[3, 3]], "one kernel a stage"),
        ([[1, 1], [2, 2]], [[3, 3], [2, 3]], "odd kernels"),
        ([[1, 1], [2, 2, 2]], [[3, 3], [3, 3]], "one an axis"),
    ],
)
def test_strides_and_kernels_that_fit_no_network(strides: list[Any], kernels: list[Any], message: str) -> None:
    plans = plans_of({"2d": configuration([8, 8], [8, 8], strides, kernels)})
    with pytest.raises(InputError, match=message):
        plan_from_json(plans, "2d")


def test_one_number_stands_for_every_axis() -> None:
    plans = plans_of({"2d": configuration([8, 8], [8, 8], [1, 2], [3, [3, 3]])})
    assert plan_from_json(plans, "2d").strides == ((1, 1), (2, 2))


def test_the_pipelines_plan() -> None:
    of_pipeline = plan_from_json(small_2d())
    assert of_pipeline == plan_from_json(small_2d(), "2d") and of_pipeline.patch_size_px == (64, 48)
    assert of_pipeline.data_identifier == "nnUNetPlans_2d"
    assert replace(of_pipeline, transpose_forward=(2, 0, 1)).transpose_backward == (1, 2, 0)
