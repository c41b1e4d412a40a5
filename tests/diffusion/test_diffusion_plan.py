"""From nnU-Net's plans to the settings of diffusion models: sizes, strides, widths, memory, lengths; the command."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.machine import Machine
from common.plan import Plan, plan_from_json, square_plan
from common.settings import to_dict
from diffusion.autoencoder import Autoencoder, latent_size
from diffusion.cost import autoencoder_flop, denoiser_flop, meta_autoencoder, meta_denoiser
from diffusion.layout import layout_of, sizes_of_levels
from diffusion.memory import StepMemory, autoencoder_step, denoiser_step
from diffusion.plan import PLAN_FILE, main, n_epochs, read_plan
from diffusion.planning import (
    MACHINE,
    derive_on,
    derive_settings,
    estimated_bytes,
    training_flop,
    with_length,
)
from diffusion.settings import (
    AutoencoderConfig,
    AutoencoderSettings,
    DenoiserSettings,
    DiffusionConfig,
    DiffusionSettings,
)
from nnunetv2_mod.nnunet_folder import find_dataset

LAPTOP, GPU_8, GPU_24, H200 = (
    Machine("cpu", 8.0, False),
    Machine("cuda", 8.0, False),
    Machine("cuda", 24.0, True),
    Machine("cuda", 140.0, True),
)
LATENT, PIXELS = DiffusionConfig(AutoencoderConfig()), DiffusionConfig()
MODELS = {"ddpm": PIXELS, "ldm": LATENT}


def configuration(
    patch: list[int], median: list[float], strides: list[Any], kernels: list[Any], batch_size: int = 2
) -> dict[str, Any]:
    """Of one channel, in the current layout."""
    return {
        "data_identifier": f"nnUNetPlans_{len(patch)}d",
        "batch_size": batch_size,
        "patch_size": patch,
        "median_image_size_in_voxels": median,
        "spacing": [1.0] * len(patch),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "arch_kwargs": {
                "strides": strides,
                "kernel_sizes": kernels,
                "features_per_stage": [min(320, 32 * 2**i) for i in range(len(strides))],
            }
        },
    }


def plans_of(configurations: dict[str, Any], n_channels: int = 1) -> dict[str, Any]:
    for one in configurations.values():
        for key in ("normalization_schemes", "use_mask_for_norm"):
            if key in one:
                one[key] = one[key] * n_channels
    return {
        "dataset_name": "Dataset001_X",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "original_median_shape_after_transp": [20, 64, 64],
        "foreground_intensity_properties_per_channel": {str(i): {"mean": 1.0} for i in range(n_channels)},
        "configurations": configurations,
    }


def brain() -> dict[str, Any]:
    """Four channels, isotropic, as BraTS is planned; the worked example of the specification (section 4.4)."""
    volumes = configuration([128] * 3, [138, 169, 138], [[1] * 3] + [[2] * 3] * 5, [[3] * 3] * 6)
    images = configuration([192, 160], [192, 160], [[1, 1]] + [[2, 2]] * 5, [[3, 3]] * 6, 105)
    return plans_of({"2d": images, "3d_fullres": volumes}, 4)


def prostate() -> dict[str, Any]:
    """Thick slices: flat kernels, and strides that keep the first axis."""
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    kernels = [[1, 3, 3]] * 3 + [[3, 3, 3]] * 3
    return plans_of({"3d_fullres": configuration([16, 320, 320], [20.0, 320.4, 319.9], strides, kernels)})


def small_2d() -> dict[str, Any]:
    return plans_of({"2d": configuration([64, 48], [60, 44], [[1, 1]] + [[2, 2]] * 3, [[3, 3]] * 4, 49)})


def tiny_3d(*median: int) -> Plan:
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    one = plan_from_json(prostate(), "3d_fullres")
    return replace(one, median_image_size=median, strides=strides, kernel_sizes=((3, 3, 3),) * 4)


def derived(plan: Plan, config: DiffusionConfig, machine: Machine, n_images: int = 500) -> DiffusionSettings:
    return derive_settings(plan, n_images, plan.n_channels, None, config, machine)


def reduced(plan: Plan, config: DiffusionConfig) -> tuple[AutoencoderSettings | None, DenoiserSettings, Any]:
    """Both networks with widths of 4, on the strides and kernels that the plan leads to."""
    layout, own = layout_of(plan, config), None
    if config.autoencoder is not None:
        own = replace(
            derived(square_plan(8), LATENT, LAPTOP).autoencoder,
            channels=(4,) * (len(layout.autoencoder_strides) + 1),
            first_kernel=layout.first_kernel,
            strides=layout.autoencoder_strides,
            kernel_sizes=layout.autoencoder_kernels,
        )
    n_levels = len(layout.denoiser_strides) + 1
    denoiser = DenoiserSettings(
        n_channels=1 if own is None else own.latent_channels,
        channels=(4,) * n_levels,
        n_res_blocks=1,
        first_kernel=layout.denoiser_first_kernel,
        strides=layout.denoiser_strides,
        kernel_sizes=layout.denoiser_kernels,
        attention=(False,) * n_levels,
    )
    return own, denoiser, layout


# ---------------------------------------------------------------------------------------------------- the mapping


def test_an_isotropic_plan_of_volumes_as_in_the_specifications_example() -> None:
    made = derived(plan_from_json(brain(), "3d_fullres"), LATENT, H200)
    own, denoiser = made.autoencoder, made.denoiser
    assert own is not None
    assert made.image_size == (128, 192, 128) and made.denoised_size == (32, 48, 32)
    assert (own.channels, own.strides, own.kernel_sizes) == ((32, 64, 128), ((2, 2, 2),) * 2, ((3, 3, 3),) * 2)
    assert (own.n_channels, own.batch_size, own.perceptual_weight, own.learning_rate) == (4, 2, 0.125, 1e-3)
    assert (denoiser.channels, denoiser.strides) == ((256, 512, 768), ((2, 2, 2),) * 2)
    assert denoiser.n_channels == 4 and denoiser.attention == (False, False, True)  # 16 * 24 * 16 and 8 * 12 * 8
    assert (made.batch_size, made.n_accumulated, made.precision) == (4, 1, "bf16")
    assert made.learning_rate == pytest.approx(0.025 / 256)


def test_an_isotropic_plan_in_pixels() -> None:
    made = derived(plan_from_json(brain(), "3d_fullres"), PIXELS, H200)
    assert made.autoencoder is None and made.denoised_size == made.image_size == (128, 192, 128)
    assert made.denoiser.channels == (64, 128, 256, 256) and made.denoiser.n_channels == 4
    assert made.denoiser.checkpointing and made.denoiser.attention == (False,) * 4
    assert made.learning_rate == pytest.approx(0.025 / 64)


def test_an_anisotropic_plan_keeps_its_flat_kernels_and_strides() -> None:
    plan = plan_from_json(prostate(), "3d_fullres")
    assert plan.median_image_size == (20, 320, 320)
    made = derived(plan, LATENT, H200)
    own, denoiser = made.autoencoder, made.denoiser
    assert own is not None
    assert made.image_size == (20, 320 - 64, 320 - 64)  # 256 and 384 are as near; the smaller
    assert own.first_kernel == (1, 3, 3) and own.strides == ((1, 2, 2),) * 2 and own.kernel_sizes == ((1, 3, 3),) * 2
    assert own.reduction == (1, 4, 4) and made.denoised_size == (20, 64, 64)
    assert denoiser.first_kernel == (1, 3, 3)  # of the stage that has the latents' size
    assert denoiser.strides == ((2, 2, 2), (2, 2, 2)) and denoiser.kernel_sizes == ((3, 3, 3),) * 2
    in_pixels = derived(plan, PIXELS, H200)
    assert in_pixels.denoiser.strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert in_pixels.denoiser.kernel_sizes == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


def test_a_plan_of_images() -> None:
    plan = plan_from_json(small_2d(), "2d")
    made = derived(plan, LATENT, GPU_24)
    own = made.autoencoder
    assert own is not None
    assert made.image_size == (64, 48) and made.denoised_size == (32, 24)
    assert own.channels == (64, 128) and own.perceptual_weight == 0.5 and own.learning_rate == pytest.approx(5e-4)
    assert own.batch_size == made.batch_size == 36  # three quarters of 49, in fours
    assert made.denoiser.strides == ((2, 2), (2, 2)) and made.denoiser.attention == (False, True, True)
    larger = plan_from_json(brain(), "2d")
    assert derived(larger, LATENT, H200).denoised_size == (48, 40)
    assert derived(larger, LATENT, H200).batch_size == 76 and derived(larger, LATENT, H200, 5).batch_size == 4


def test_four_channels_are_generated_or_some_of_them_and_labels_with_them() -> None:
    plan = plan_from_json(brain(), "2d")
    made = derive_settings(plan, 100, 2, None, LATENT, H200, n_label_channels=3)
    assert made.autoencoder is not None and made.autoencoder.n_channels == made.n_data_channels == 5
    assert made.denoiser.n_channels == 4
    assert derive_settings(plan, 100, 2, None, PIXELS, H200, n_label_channels=3).denoiser.n_channels == 5


@pytest.mark.parametrize(
    ("edge", "n_expected"), [(32, 1), (64, 1), (96, 2), (256, 2), (384, 3), (512, 3), (8, 1), (16, 1)]
)
def test_downsamplings_by_the_largest_edge(edge: int, n_expected: int) -> None:
    plan = replace(square_plan(1024), patch_size=(edge, edge))
    assert len(layout_of(plan, LATENT).autoencoder_strides) == n_expected


def test_the_autoencoder_never_takes_more_strides_than_the_plan_has() -> None:
    short = replace(square_plan(512), strides=((1, 1), (2, 2)), kernel_sizes=((3, 3), (3, 3)))
    layout = layout_of(short, LATENT)
    assert len(layout.autoencoder_strides) == 1 and layout.denoiser_strides == ()
    none = replace(short, strides=((1, 1),), kernel_sizes=((3, 3),))
    assert layout_of(none, PIXELS).denoiser_strides == ()
    with pytest.raises(InputError, match="has 0"):
        layout_of(none, LATENT)


@pytest.mark.parametrize(("median", "size"), [((32, 32, 32), (32, 32, 32)), ((20, 32, 32), (20, 32, 32))])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_tiny_volumes(median: tuple[int, ...], size: tuple[int, ...], config: DiffusionConfig) -> None:
    layout = layout_of(tiny_3d(*median), config)
    assert layout.image_size == size
    levels = sizes_of_levels(layout.denoised_size, layout.denoiser_strides)
    assert len(levels) > 1 and min(levels[-1]) >= 4 and max(levels[-1]) >= 8


def test_the_denoiser_stops_before_an_axis_is_too_short() -> None:
    assert sizes_of_levels((32, 32), layout_of(square_plan(32), PIXELS).denoiser_strides)[-1] == (8, 8)
    flat = replace(square_plan(64), patch_size=(64, 8))
    assert layout_of(flat, PIXELS).denoiser_strides == ((2, 2),)
    odd = replace(square_plan(64), patch_size=(64, 60))  # 60 / 8 is no whole number
    assert layout_of(odd, PIXELS).denoiser_strides == ((2, 2), (2, 2))


# ------------------------------------------------------------------------------------------------------- the plans


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


# ----------------------------------------------------------------------------------------- every network it leads to


@st.composite
def spatial_plans(draw: st.DrawFn) -> Plan:
    n_axes, n_strides = draw(st.sampled_from([2, 3])), draw(st.integers(1, 5))
    one_stride = st.lists(st.sampled_from([1, 2, 2, 3]), min_size=n_axes, max_size=n_axes).filter(lambda s: max(s) > 1)
    one_kernel = st.lists(st.sampled_from([1, 3, 3, 5]), min_size=n_axes, max_size=n_axes)
    strides = draw(st.lists(one_stride, min_size=n_strides, max_size=n_strides))
    kernels = draw(st.lists(one_kernel, min_size=n_strides + 1, max_size=n_strides + 1))
    patch = [draw(st.integers(1, 3)) for _ in range(n_axes)]
    for stride in strides:
        patch = [n * s for n, s in zip(patch, stride)]
    median = [draw(st.integers(4, 90)) for _ in range(n_axes)]
    plans = plans_of({"a": configuration(patch, median, [[1] * n_axes, *strides], kernels)})
    return plan_from_json(plans, "a")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(plan=spatial_plans(), config=st.sampled_from(list(MODELS.values())))
def test_networks_give_back_the_size_they_are_given(plan: Plan, config: DiffusionConfig) -> None:
    own, denoiser, layout = reduced(plan, config)
    denoised = layout.denoised_size
    assert plan.n_axes == 3 or layout.image_size == plan.patch_size
    if own is not None:
        network, inputs = meta_autoencoder(own, layout.image_size)
        made, _ = network(*inputs)
        assert made.shape == inputs[0].shape
        assert tuple(network.moments(inputs[0])[0].shape[2:]) == denoised == latent_size(own, layout.image_size)
    network_d, inputs_d = meta_denoiser(denoiser, denoised)
    assert network_d(*inputs_d).shape == (1, denoiser.n_channels, *denoised)
    levels = sizes_of_levels(denoised, denoiser.strides)
    for before, after, stride in zip(levels, levels[1:], denoiser.strides):
        assert all(n == m * s for n, m, s in zip(before, after, stride))
        assert all(m >= 4 for m, s in zip(after, stride) if s > 1)


def test_defect_2_a_flat_kernel_does_not_make_an_axis_longer() -> None:
    """The original padded by 1 whatever the kernel, so that an axis with kernel 1 grew at every step."""
    plan = replace(plan_from_json(prostate(), "3d_fullres"), median_image_size=(5, 16, 16))
    own, _, layout = reduced(plan, LATENT)
    assert own is not None and own.kernel_sizes[0] == (1, 3, 3) and layout.image_size == (5, 16, 16)
    images = torch.randn(1, 1, *layout.image_size)
    made, _ = Autoencoder(own)(images, torch.randn(1, 4, *layout.denoised_size))
    assert made.shape == images.shape


@pytest.mark.parametrize("median", [(138, 169, 138), (155, 240, 240), (53, 87, 91), (33, 47, 500), (7, 21, 1000)])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_defect_12_a_median_size_is_divisible_by_all_strides(median: tuple[int, ...], config: DiffusionConfig) -> None:
    """The original took the median size whatever the strides, and crashed in the decoder."""
    for strides in (((2, 2, 2),) * 5, ((1, 2, 2), (3, 2, 2), (2, 2, 3))):
        whole = ((1, 1, 1), *strides)
        plan = replace(tiny_3d(*median), strides=whole, kernel_sizes=((3, 3, 3),) * len(whole))
        layout = layout_of(plan, config)
        used = (*layout.autoencoder_strides, *layout.denoiser_strides)
        for axis, n in enumerate(layout.image_size):
            factor = 1
            for stride in used:
                factor *= stride[axis]
            assert n % factor == 0 and n <= 512 + factor and abs(n - min(512, median[axis])) <= 64


# --------------------------------------------------------------------------------------------- what the user may fix


def test_values_that_are_given_stay() -> None:
    config = DiffusionConfig(
        AutoencoderConfig(channels=(16, 32, 32), perceptual_weight=0.0, learning_rate=2e-4),
        channels=(24, 48),
        batch_size=6,
        n_accumulated=3,
        checkpointing=True,
        precision="fp32",
        learning_rate=3e-4,
        ema_kimg=0.7,
    )
    made = derive_settings(square_plan(64), 100, 1, 2.0, config, H200)
    own = made.autoencoder
    assert own is not None
    assert own.channels == (16, 32, 32) and own.reduction == (4, 4) and own.learning_rate == 2e-4
    assert made.denoiser.channels == (24, 48) and made.denoiser.strides == ((2, 2),)
    for training in (own, made):
        assert training.batch_size == 6 and training.n_accumulated == 3
    assert own.checkpointing and made.denoiser.checkpointing
    assert (made.precision, made.learning_rate, made.ema_kimg, own.perceptual_weight) == ("fp32", 3e-4, 0.7, 0.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DiffusionConfig(schedule="linear"), "schedule"),
        (DiffusionConfig(channels=(8,) * 6), "5 downsamplings, and the plan '2d' has 4"),
        (DiffusionConfig(AutoencoderConfig(n_downsamplings=5)), "5 downsamplings"),
        (DiffusionConfig(AutoencoderConfig(n_downsamplings=2, channels=(8, 8))), "2 widths"),
        (DiffusionConfig(AutoencoderConfig(channels=(8,))), "keeps the size"),
        (DiffusionConfig(batch_size=6, n_accumulated=4), "no 4 equal parts"),
    ],
)
def test_settings_no_training_can_use(config: DiffusionConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        derive_settings(square_plan(64), 100, 1, None, config, LAPTOP)


def test_images_that_the_asked_for_strides_do_not_divide() -> None:
    plan = replace(square_plan(64), patch_size=(60, 62))
    with pytest.raises(InputError, match=r"\(60, 62\) are not divisible by \(4, 4\)"):
        layout_of(plan, DiffusionConfig(AutoencoderConfig(n_downsamplings=2)))


def test_a_batch_is_a_multiple_of_the_parts_that_are_given() -> None:
    made = derive_settings(square_plan(16), 100, 1, 1.0, DiffusionConfig(n_accumulated=3), LAPTOP)
    assert (made.batch_size, made.n_accumulated) == (9, 3)
    few = derive_settings(square_plan(16), 3, 1, 1.0, PIXELS, LAPTOP)
    assert few.batch_size == 3 and derive_settings(square_plan(16), 1, 1, 1.0, PIXELS, LAPTOP).batch_size == 2


# ----------------------------------------------------------------------------------------------------- cost and length


def test_widths_on_a_cpu_are_the_largest_that_cost_little_enough() -> None:
    for config in (PIXELS, LATENT):
        made = derived(square_plan(64), config, LAPTOP)
        widths = made.denoiser.channels
        wider = next(base for base in (16, 24, 32, 48, 64) if base > widths[0])
        tried = replace(made.denoiser, channels=tuple(wider * n // widths[0] for n in widths))
        assert denoiser_flop(made.denoiser, made.denoised_size) <= 1.25e9 < denoiser_flop(tried, made.denoised_size)
        if made.autoencoder is not None:
            assert autoencoder_flop(made.autoencoder, made.image_size) <= 1.25e9
    assert derived(square_plan(8), PIXELS, LAPTOP).denoiser.channels[0] == 64


def test_flop_of_a_convolution_are_those_one_counts_by_hand() -> None:
    single = DenoiserSettings(1, (8,), 1, (3, 3), (), (), (False,))
    wider_kernel = replace(single, first_kernel=(5, 5))
    extra = 2 * (25 - 9) * (1 * 8 + 8 * 1) * 16 * 16  # first and last convolution of 16 x 16
    assert denoiser_flop(wider_kernel, (16, 16)) - denoiser_flop(single, (16, 16)) == extra


def test_lengths() -> None:
    plan = square_plan(32)
    assert derived(plan, PIXELS, H200, 7).kimg == 7.0
    assert derived(plan, PIXELS, LAPTOP, 2).kimg == 3.0
    on_cpu = derived(plan, LATENT, LAPTOP, 5000)
    assert 3.0 < on_cpu.kimg < 5000 and on_cpu.kimg * 1000 * training_flop(on_cpu) <= 1.5e14
    made = derive_settings(plan, 100, 1, 10.0, LATENT, LAPTOP)
    own = made.autoencoder
    assert own is not None
    assert (own.n_epochs, own.steps_per_epoch) == (20, 19)  # 3000 images in batches of 8
    assert (made.n_epochs, made.steps_per_epoch, made.ema_kimg) == (20, 44, 0.5)
    assert own.adversarial_from_step == 20 * 19 // 4
    assert with_length(made, 1000.0).ema_kimg == 10.0
    assert with_length(made, 0.001).n_steps == 20


@pytest.mark.parametrize(("n_cases", "factor"), [(142, 1), (143, 2), (714, 2), (715, 3)])
def test_epochs_of_the_command(n_cases: int, factor: int) -> None:
    assert (n_epochs("2D", n_cases), n_epochs("3D", n_cases)) == (200 * factor, 300 * factor)


def test_a_training_moved_to_another_machine_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (square_plan(32), 50, 1, None, PIXELS)
    monkeypatch.setattr("diffusion.planning.describe_machine", lambda device: H200)
    first = derive_on(tmp_path, "cuda", *arguments)
    monkeypatch.setattr("diffusion.planning.describe_machine", lambda device: LAPTOP)
    assert derive_on(tmp_path, "cpu", *arguments) == first and (tmp_path / MACHINE).is_file()
    assert derive_on(tmp_path / "new", "cpu", *arguments) != first


# -------------------------------------------------------------------------------------------------------------- memory


@contextmanager
def counted_storages(network: torch.nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """What a forward pass keeps for the backward pass, each storage once, parameters not."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def kept_on_the_cpu(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    network = network.to_empty(device="cpu")
    with counted_storages(network) as kept:
        outputs = network(*(torch.zeros(one.shape) for one in inputs))
        n_bytes = sum(storage.nbytes() for storage in kept.values())
    del outputs
    return float(n_bytes)


NETWORKS = {
    "images": DenoiserSettings(1, (16, 32), 2, (3, 3), ((2, 2),), ((3, 3),), (False, False)),
    "attention": DenoiserSettings(2, (8, 16), 1, (3, 3), ((2, 2),), ((3, 3),), (False, True)),
    "flat volumes": DenoiserSettings(1, (8, 8), 1, (1, 3, 3), ((1, 2, 2),), ((1, 3, 3),), (False, False)),
}


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_memory_is_at_least_what_a_forward_pass_keeps_and_at_most_twice(settings: DenoiserSettings) -> None:
    size = (16,) * len(settings.first_kernel)
    kept = kept_on_the_cpu(*meta_denoiser(settings, size))
    estimated = denoiser_step(settings, size, "fp32")
    assert kept <= estimated.activations <= estimated.at_once <= 2 * kept
    in_parts = replace(settings, checkpointing=True)
    kept_in_parts = kept_on_the_cpu(*meta_denoiser(in_parts, size))
    assert kept_in_parts <= denoiser_step(in_parts, size, "fp32").activations < estimated.activations
    half = denoiser_step(settings, size, "bf16").activations / estimated.activations
    assert 0.5 < half < 1  # autocast keeps what norms are given in float32
    assert estimated.weights == 4 * sum(p.numel() for p in meta_denoiser(settings, size)[0].parameters())


def test_memory_of_an_autoencoder_has_its_losses_in_it() -> None:
    own = derived(square_plan(32), LATENT, LAPTOP).autoencoder
    assert own is not None
    alone = replace(own, channels=(8, 16), perceptual="none", adversarial_weight=0.0)
    size = (32, 32)
    kept, estimated = kept_on_the_cpu(*meta_autoencoder(alone, size)), autoencoder_step(alone, size, "fp32")
    assert kept <= estimated.activations <= estimated.at_once <= 2 * kept
    with_critic = autoencoder_step(replace(alone, adversarial_weight=0.1), size, "fp32")
    assert with_critic.weights > estimated.weights and with_critic.activations > estimated.activations
    with_both = autoencoder_step(replace(alone, adversarial_weight=0.1, perceptual="efficientnet_lite0"), size, "fp32")
    assert with_both.weights == with_critic.weights and with_both.activations > with_critic.activations


@pytest.mark.parametrize("machine", [GPU_8, replace(GPU_8, has_bf16=True)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_volumes_of_four_channels_fit_into_8_gib(machine: Machine, config: DiffusionConfig) -> None:
    made = derived(plan_from_json(brain(), "3d_fullres"), config, machine)
    assert max(estimated_bytes(made).values()) <= 0.8 * 8 * 2**30
    assert made.image_size == (128, 192, 128) and made.denoiser.checkpointing
    for training in (made, made.autoencoder or made):
        assert training.batch_size % training.n_accumulated == 0


def test_what_gives_way_to_the_memory_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointing, then parts, then widths; with the parts given, the batch before the widths."""
    used: list[tuple[float, int, bool]] = []

    def step(settings: DenoiserSettings, size: tuple[int, ...], precision: str) -> StepMemory:
        used.append((settings.channels[0], 0, settings.checkpointing))
        n_bytes = 2**30 * settings.channels[0] / 64 * (0.5 if settings.checkpointing else 1.0)
        return StepMemory(0.0, n_bytes, 0.0)

    monkeypatch.setattr("diffusion.memory.denoiser_step", step)
    monkeypatch.setattr("diffusion.memory.BASELINE_BYTES", 0.0)

    def found(needed_gib: float, **given: Any) -> tuple[Any, ...]:
        machine = Machine("cuda", needed_gib / 0.8, False)
        made = derive_settings(replace(square_plan(32), batch_size=11), 99, 1, 1.0, DiffusionConfig(**given), machine)
        return made.denoiser.channels[0], made.batch_size, made.n_accumulated, made.denoiser.checkpointing

    assert found(8.0) == (64, 8, 1, False) and found(7.9) == (64, 8, 1, True) and found(3.9) == (64, 8, 2, True)
    assert found(0.5) == (64, 8, 8, True) and found(0.49) == (32, 8, 8, True)
    assert found(0.0625) == (8, 8, 8, True)
    assert found(7.9, checkpointing=False) == (64, 8, 2, False)
    assert found(1.0, n_accumulated=2) == (64, 4, 2, True) and found(0.25, n_accumulated=2) == (32, 2, 2, True)
    assert found(0.25, n_accumulated=2, batch_size=8) == (8, 8, 2, True)
    assert found(1.0, channels=(64, 64), n_accumulated=1) == (64, 2, 1, True)
    for fixed in ({}, {"channels": (64,)}, {"batch_size": 8, "n_accumulated": 1}):
        with pytest.raises(InputError, match=r"\(32, 32\).* GiB"):
            found(0.06, **fixed)


# ---------------------------------------------------------------------------------------------------- folder, command


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of preprocessed datasets with 1, of images, and 100, of volumes."""
    folder = tmp_path / "preprocessed"
    write_dataset(folder / "Dataset001_X", small_2d())
    write_dataset(folder / "Dataset100_Y", brain())
    (folder / "notes").mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return folder


def write_dataset(folder: Path, plans: dict[str, Any], n_cases: int = 10) -> None:
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    described = {"numTraining": n_cases, "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
    (folder / "dataset.json").write_text(json.dumps(described))


def test_defect_11_an_id_is_a_number_and_not_the_beginning_of_a_name(preprocessed: Path) -> None:
    for text in ("1", "001", "Dataset001_X", str(preprocessed / "Dataset001_X")):
        assert find_dataset(text).name == "Dataset001_X"
    assert find_dataset("100").preprocessed == preprocessed / "Dataset100_Y"
    assert find_dataset("1").plans == small_2d() and find_dataset("1").dataset_json["numTraining"] == 10
    with pytest.raises(InputError, match="no dataset '10'; those there: Dataset001_X, Dataset100_Y"):
        find_dataset("10")
    write_dataset(preprocessed / "Dataset001_Other", small_2d())
    with pytest.raises(InputError, match="one of Dataset001_Other, Dataset001_X"):
        find_dataset("1")


def test_defect_11_a_variable_that_is_not_set_is_named(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(InputError, match="nnUNet_preprocessed: not set"):
        find_dataset("1")
    monkeypatch.chdir(preprocessed)
    assert find_dataset("Dataset001_X").preprocessed == preprocessed / "Dataset001_X"
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed / "gone"))
    with pytest.raises(InputError, match="no such folder"):
        find_dataset("1")


def test_defect_11_plans_without_volumes_are_planned_without_them(
    preprocessed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert main(["1", "--device", "cpu"]) == 0
    assert "3D: left out, the plans have no configuration 3d_fullres" in caplog.text
    assert read_plan(preprocessed / "Dataset001_X" / PLAN_FILE, "2D", "ddpm").image_size == (64, 48)


def test_the_raw_dataset_is_found_beside(preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_dataset("1").raw is None
    (tmp_path / "raw" / "Dataset001_X").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert find_dataset("1").raw == tmp_path / "raw" / "Dataset001_X" and find_dataset("100").raw is None
    (preprocessed / "Dataset001_X" / "dataset.json").rename(tmp_path / "raw" / "Dataset001_X" / "dataset.json")
    assert find_dataset("1").dataset_json["numTraining"] == 10


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("nnUNetPlans.json", None, "no such plans"),
        ("nnUNetPlans.json", "{", "not JSON"),
        ("nnUNetPlans.json", "[]", "a list in place"),
        ("dataset.json", None, "no such file"),
        ("dataset.json", "{}", "numTraining is None"),
        ("nnUNetPlans.json", '{"configurations": {}}', "neither"),
    ],
)
def test_bad_input_ends_with_1_and_says_why(
    file: str, content: str | None, message: str, preprocessed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = preprocessed / "Dataset001_X" / file
    path.unlink() if content is None else path.write_text(content)
    assert main(["1"]) == 1
    error = capsys.readouterr().err
    assert message in error and "way out" in error and file in error
    assert not (preprocessed / "Dataset001_X" / PLAN_FILE).exists()


def test_a_failure_that_is_no_bad_input_is_not_swallowed(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 10: the original caught everything and ended with 0."""

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("diffusion.plan.plan_text", fail)
    with pytest.raises(ZeroDivisionError):
        main(["1"])


@pytest.mark.parametrize("channels", ["0,4", "1,1"])
def test_channels_that_are_not_there(channels: str, preprocessed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["100", "--channels", channels]) == 1
    assert "--channels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["100", "--channels", "[0,1]"])


def test_the_plan_is_read_as_it_was_derived(preprocessed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "plan.yaml"
    arguments = ["--channels", "0,2", "--labels", "--out", str(out), "--device", "cuda", "--memory-gib", "24"]
    assert main(["100", *arguments]) == 0
    text = out.read_text()
    assert text.startswith("#") and "&id" not in text and "strides: [[2, 2, 2], [2, 2, 2]]" in text
    assert "channels: [0, 2]" in text and text.count("estimated_memory_gib:") == 4
    assert [line for line in text.splitlines() if line and line[0] not in " #"] == [
        "dataset:",
        "machine:",
        "2D:",
        "3D:",
    ]
    made = read_plan(out, "3D", "ldm")
    own = made.autoencoder
    assert own is not None
    assert made.n_channels == 2 and made.n_label_channels == 2 and own.n_channels == 4
    assert (own.n_epochs, own.steps_per_epoch, made.n_epochs, made.steps_per_epoch) == (300, 250, 300, 250)
    assert made.kimg == pytest.approx(300 * 250 * (own.batch_size + made.batch_size) / 1000)
    assert with_length(made, made.kimg) == made  # lengths and shares agree
    assert own.adversarial_from_step == 300 * 250 // 4
    pixels = read_plan(out, "2D", "ddpm")
    assert pixels.autoencoder is None and pixels.n_steps == 200 * 250 and pixels.config.n_snapshots == 200
    assert to_dict(read_plan(out, "2D", "ddpm")) == to_dict(pixels)


def test_a_model_that_does_not_fit_is_left_out(preprocessed: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = prostate()
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [250, 250, 250]
    write_dataset(preprocessed / "Dataset007_Z", plans)
    with caplog.at_level(logging.INFO):
        assert main(["7", "--device", "cpu", "--memory-gib", "16"]) == 0
    assert "3D ddpm: left out" in caplog.text and "(256, 256, 256)" in caplog.text
    path = preprocessed / "Dataset007_Z" / PLAN_FILE
    assert read_plan(path, "3D", "ldm").image_size == (256, 256, 256)
    with pytest.raises(InputError, match=r"those there \(3D ldm\)"):
        read_plan(path, "3D", "ddpm")


def test_a_plan_edited_by_hand(preprocessed: Path) -> None:
    path = preprocessed / "Dataset001_X" / PLAN_FILE
    assert main(["1", "--device", "cpu"]) == 0
    whole = path.read_text()
    first, rest = whole.split("ldm:")
    for before, after, message in (
        ("\n    batch_size: 8", "\n    batchsize: 8", "unknown key 'batchsize'"),
        ("\n    learning_rate", "\n    rate: 1\n    learning_rate", "unknown key 'rate'"),
        ("image_size: [64, 48]", "image_size: [64, 44]", "cannot be divided by the strides"),
        ("strides: [[2, 2]]", "strides: [[2, 2], [2, 2]]", "2 widths, 2 strides and 1 kernels"),
        ("first_kernel: [3, 3]", "first_kernel: [3]", "other axes"),
        ("snapshot: heldout", "snapshot: best", "'best' is not allowed"),
        ("\n    n_channels: 1\n", "\n", "'n_channels' is missing"),
    ):
        assert before in rest
        path.write_text(f"{first}ldm:{rest.replace(before, after, 1)}")
        with pytest.raises(InputError, match=message):
            read_plan(path, "2D", "ldm")
    for content, message in (("a: [", "not YAML"), ("[]", "no model 2D ddpm"), ("2D: {ddpm: 3}", "no model")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_plan(path, "2D", "ddpm")
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_plan(path, "2D", "ddpm")
