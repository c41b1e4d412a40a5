"""From plan, data and machine to every setting of a diffusion model: sizes, strides, widths, lengths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nnunet_plans import (
    GPU_24,
    H200,
    LAPTOP,
    LATENT,
    MODELS,
    PIXELS,
    brain,
    configuration,
    derived,
    plans_of,
    prostate,
    reduced,
    small_2d,
    tiny_3d,
)

from common.errors import InputError
from common.plan import Plan, plan_from_json, square_plan
from common.settings import to_dict
from diffusion.autoencoder import Autoencoder
from diffusion.cost import (
    autoencoder_flop,
    denoiser_flop,
    meta_autoencoder,
    meta_denoiser,
    training_flop,
)
from diffusion.layout import layout_of, sizes_of_levels
from diffusion.plan import n_epochs
from diffusion.planning import (
    MACHINE,
    derive_settings,
    machine_of,
    with_length,
)
from diffusion.settings import (
    AutoencoderConfig,
    DenoiserSettings,
    DiffusionConfig,
)


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
    assert own.latent_size(made.image_size) == made.denoised_size == (20, 64, 64)
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
        assert tuple(network.moments(inputs[0])[0].shape[2:]) == denoised == own.latent_size(layout.image_size)
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
    assert own.channels == (16, 32, 32) and own.latent_size((32, 32)) == (8, 8) and own.learning_rate == 2e-4
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
    monkeypatch.setattr("diffusion.planning.describe_machine", lambda device: H200)
    first = machine_of(tmp_path, "cuda")
    monkeypatch.setattr("diffusion.planning.describe_machine", lambda device: LAPTOP)
    assert machine_of(tmp_path, "cpu") == first == H200 and (tmp_path / MACHINE).is_file()
    assert machine_of(tmp_path / "new", "cpu") == LAPTOP


def test_settings_of_an_older_version_are_read_and_told_augmentations_refused() -> None:
    """They measured worse and were removed; the keys stay, so that older checkpoints, plans and packages are read."""
    values = to_dict(derived(square_plan(8), PIXELS, LAPTOP))
    assert values["config"]["augment"] == [] and values["denoiser"]["n_augment"] == 0
    with pytest.raises(InputError, match="no longer"):
        derived(square_plan(8), DiffusionConfig(augment=("scale",)), LAPTOP)
