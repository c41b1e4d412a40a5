"""Layers, networks and losses of the generator against slow references, over plans nnU-Net can emit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gan_trainings import standard_count
from torch import nn
from torch.nn import functional as F

from common.errors import InputError
from common.plan import Plan
from gan.augment import augment
from gan.functions import EPSILON, blur, channel_products, fir_norm, fir_taps, upsample
from gan.layers import ResampledConv, minibatch_deviation
from gan.model import Discriminator, GeneratorNetwork
from gan.settings import GanConfig, GanSettings, derive_settings
from gan.train_step import path_lengths, r1_penalty

NARROW = GanConfig(batch_size=2, channel_base=32, channel_max=6, z_dim=5, w_dim=4)


def plan_of(size: tuple[int, int], strides: list[tuple[int, int]], kernels: list[tuple[int, int]]) -> Plan:
    scheme = ("ZScoreNormalization",)
    return Plan(size, ((1, 1), *strides), tuple(kernels), (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)


def square_plan(size: int, bottleneck: int = 4) -> Plan:
    n_halvings = int(math.log2(size // bottleneck))
    return plan_of((size, size), [(2, 2)] * n_halvings, [(3, 3)] * (n_halvings + 1))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def plan_settings(draw: st.DrawFn) -> GanSettings:
    n_stages = draw(st.integers(2, 4))
    axis = st.sampled_from([1, 2, 2, 3])
    strides = [(draw(axis), draw(axis)) for _ in range(n_stages - 1)]
    kernels = [(draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3]))) for _ in range(n_stages)]
    height = draw(st.integers(3, 6)) * math.prod(stride[0] for stride in strides)
    width = draw(st.integers(3, 6)) * math.prod(stride[1] for stride in strides)
    return derive_settings(plan_of((height, width), strides, kernels), 4, draw(st.integers(1, 5)), None, NARROW)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(plan_settings())
def test_networks_take_every_plan_and_its_second_derivatives(derived: GanSettings) -> None:
    """D8: mixed strides and 1x3 kernels crashed both networks of the original."""
    generator, discriminator = GeneratorNetwork(derived), Discriminator(derived)
    for block in generator.blocks:  # noise strengths start at 0, which would hide a map of a wrong size
        for name, parameter in block.named_parameters():
            if name.endswith("noise_strength"):
                nn.init.ones_(parameter)
    styles = generator.mixed_styles(*generator.draw_latents(2, draws()))
    images = generator.synthesise(styles, generator.draw_noise(2, draws()))
    assert images.shape == (2, derived.n_channels, *derived.image_size_px)
    path_lengths(images, styles, torch.randn(images.shape, generator=draws())).sum().backward()
    reals = images.detach().requires_grad_(True)
    assert discriminator(reals).shape == (2,)
    r1_penalty(discriminator, reals, reals).backward()
    for network in (generator, discriminator):
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert len(gradients) > 5 and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_parameter_count_of_a_power_of_two_plan_is_the_standard_architecture() -> None:
    derived = derive_settings(square_plan(256), 10, 3, None, GanConfig(channel_base=2048, channel_max=64))
    channels = {4: 64, 8: 64, 16: 64, 32: 64, 64: 32, 128: 16, 256: 8}
    counted = tuple(
        sum(p.numel() for p in network(derived).parameters()) for network in (GeneratorNetwork, Discriminator)
    )
    assert counted == standard_count(256, channels, 3, 512, 512)


def test_channels_follow_the_area_of_a_stage() -> None:
    plan = plan_of((384, 320), [(2, 2)] * 6, [(3, 3)] * 7)
    assert derive_settings(plan, 10, 1, None, GanConfig()).channels == (93, 187, 376, 512, 512, 512, 512)


def naive_resampling(x: np.ndarray, factors: tuple[int, int], *, up: bool) -> np.ndarray:
    """Zero insertion or decimation around a normalised triangle filter, one output pixel at a time, per axis."""
    for axis, factor in ((2, factors[0]), (3, factors[1])):
        if factor == 1:
            continue
        taps = np.array(fir_taps(factor)) / (2 * factor**2)
        x = np.moveaxis(x, axis, 0)
        n = len(x)
        result = np.zeros((n * factor if up else n // factor, *x.shape[1:]))
        for i in range(len(result)):
            for j, tap in enumerate(taps):
                position = i + j - (3 * factor - 1) // 2 if up else i * factor + j - (factor + 1) // 2
                if up and position % factor == 0 and 0 <= position // factor < n:
                    result[i] += x[position // factor] * tap * factor
                if not up and 0 <= position < n:
                    result[i] += x[position] * tap
        x = np.moveaxis(result, 0, axis)
    return x


@pytest.mark.parametrize("factors", [(2, 2), (2, 1), (1, 2), (3, 2), (1, 3)])
def test_resampling_equals_the_naive_filter_on_each_axis(factors: tuple[int, int]) -> None:
    """D8: the original filtered both axes whatever their factors."""
    x = torch.randn(2, 3, 6, 12, dtype=torch.float64, generator=draws())
    np.testing.assert_allclose(upsample(x, factors).numpy(), naive_resampling(x.numpy(), factors, up=True), atol=1e-12)
    down = ResampledConv(3, 3, (1, 1), down=factors).double()
    down.weight.data = torch.eye(3, dtype=torch.float64)[:, :, None, None] / down.gain
    np.testing.assert_allclose(down(x).detach(), naive_resampling(x.numpy(), factors, up=False), atol=1e-12)
    up = ResampledConv(3, 3, (1, 1), up=factors).double()
    up.weight.data = torch.eye(3, dtype=torch.float64)[:, :, None, None] / up.gain
    np.testing.assert_allclose(up(x).detach(), naive_resampling(x.numpy(), factors, up=True), atol=1e-12)


def test_fir_of_a_doubling_is_the_one_of_the_paper() -> None:
    assert fir_taps(2) == (1, 3, 3, 1) and fir_norm((2, 2)) == 64 and fir_norm((2, 1)) == 8


@pytest.mark.parametrize("factors,padding", [((2, 2), ((1, 1), (2, 0))), ((3, 1), ((4, 3), (9, 9)))])
def test_blur_has_right_derivatives_of_first_and_second_order(factors, padding) -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, generator=draws(), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: blur(x, factors, padding).square(), (x,))
    assert torch.autograd.gradgradcheck(lambda x: blur(x, factors, padding).square(), (x,))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sums_over_pieces_of_a_batch_are_those_of_the_whole(memory_format, monkeypatch) -> None:
    x = torch.randn(5, 3, 6, 4, generator=draws()).contiguous(memory_format=memory_format)
    calls = [lambda: blur(x, (2, 1), ((1, 2), (0, 0))), lambda: blur(x, (3, 2), ((5, 4), (2, 1)))]
    calls.append(lambda: channel_products(x, x.square()))
    whole = [call() for call in calls]
    monkeypatch.setattr("gan.functions.PIECE_VALUES", 2 * x[0].numel())
    for call, expected in zip(calls, whole, strict=True):
        torch.testing.assert_close(call(), expected, rtol=0, atol=0)


def test_up_and_down_convolutions_equal_filter_and_full_convolution() -> None:
    """Zero insertion, convolution and filter commute; only the zero padding at the border differs."""
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64, generator=draws())
    up = ResampledConv(3, 2, (3, 3), up=(2, 2)).double()
    weight = (up.weight * up.gain).detach()
    expected = F.conv2d(upsample(x, (2, 2)), weight.flip(2, 3), padding=1)  # a transposed convolution flips
    assert torch.allclose(up(x)[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3])
    down = ResampledConv(3, 2, (3, 3), down=(2, 2)).double()
    filtered = F.conv2d(x, (down.weight * down.gain).detach(), padding=1)
    expected_down = torch.from_numpy(naive_resampling(filtered.numpy(), (2, 2), up=False))
    assert torch.allclose(down(x)[..., 2:-2, 2:-2], expected_down[..., 2:-2, 2:-2])


def test_minibatch_deviation_is_that_of_each_group() -> None:
    x = torch.randn(4, 3, 2, 5, generator=draws())
    channel = minibatch_deviation(x, 2)[:, 3]
    for image in range(4):
        group = x[[image % 2, image % 2 + 2]]
        expected = (group.var(dim=0, unbiased=False) + EPSILON).sqrt().mean()
        assert torch.allclose(channel[image], expected.expand(2, 5))


def test_r1_equals_finite_differences_of_the_logits() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(derive_settings(square_plan(8), 4, 2, None, NARROW)).double()
    reals = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=draws(), requires_grad=True)
    with torch.no_grad():
        squared = 0.0
        for position in range(reals[0].numel()):
            step = torch.zeros(reals[0].numel(), dtype=torch.float64)
            step[position] = 1e-6
            for image in range(2):
                shifts = [reals.clone(), reals.clone()]
                shifts[0][image] += step.view_as(reals[0])
                shifts[1][image] -= step.view_as(reals[0])
                slope = (discriminator(shifts[0]).sum() - discriminator(shifts[1]).sum()) / 2e-6
                squared += float(slope) ** 2 / 2
    assert r1_penalty(discriminator, reals, reals * 1.0).item() == pytest.approx(squared, rel=1e-5)


def test_r1_is_taken_by_the_images_before_augmentation() -> None:
    discriminator = Discriminator(derive_settings(square_plan(8), 4, 1, None, NARROW))
    reals = torch.randn(2, 1, 8, 8, generator=draws(), requires_grad=True)
    assert r1_penalty(discriminator, reals, reals * 0.0).item() == 0.0


def test_path_length_equals_the_norm_of_an_explicit_jacobian_product() -> None:
    torch.manual_seed(0)
    derived = derive_settings(square_plan(8), 4, 1, None, NARROW)
    generator = GeneratorNetwork(derived).double()
    noise = [maps.double() for maps in generator.draw_noise(1, draws())]
    styles = torch.randn(1, generator.n_styles, 4, dtype=torch.float64, generator=draws(1), requires_grad=True)
    projection = torch.randn(1, 1, 8, 8, generator=draws(2)).double()
    length = path_lengths(generator.synthesise(styles, noise), styles, projection)
    jacobian = torch.autograd.functional.jacobian(lambda ws: generator.synthesise(ws, noise), styles)
    gradient = torch.einsum("bchw,bchwnld->ld", projection / 8, jacobian)
    assert length.item() == pytest.approx(gradient.square().sum(dim=1).mean().sqrt().item(), rel=1e-6)


def test_colour_leaves_the_saturation_of_one_channel_and_the_mean_of_three_alone() -> None:
    grey = torch.rand(4, 1, 6, 6, generator=draws())
    changed = augment(grey, ["color"], draws(3))
    scale = (changed - changed.mean(dim=(1, 2, 3), keepdim=True)) / (grey - grey.mean(dim=(1, 2, 3), keepdim=True))
    assert torch.allclose(scale, scale[:, :, :1, :1].expand_as(scale), atol=1e-3)  # affine: contrast, brightness
    assert ((scale > 0.49) & (scale < 1.51)).all()
    colour = torch.rand(4, 3, 6, 6, generator=draws())
    shift = augment(colour, ["color"], draws(3)).mean(dim=(1, 2, 3)) - colour.mean(dim=(1, 2, 3))
    assert (shift.abs() <= 0.5).all() and shift.abs().min() > 0


def test_translation_moves_each_axis_by_an_eighth_at_most_and_fills_with_zeros() -> None:
    images = torch.ones(64, 2, 16, 32)
    moved = augment(images, ["translation"], draws())
    empty_rows = (moved[:, 0].sum(dim=2) == 0).sum(dim=1)
    empty_columns = (moved[:, 0].sum(dim=1) == 0).sum(dim=1)
    assert int(empty_rows.max()) == 2 and int(empty_columns.max()) == 4
    assert set(moved.unique().tolist()) == {0.0, 1.0} and torch.equal(moved[:, 0], moved[:, 1])


def test_cutout_zeroes_a_rectangle_of_half_the_sides() -> None:
    cut = augment(torch.ones(64, 1, 16, 32), ["cutout"], draws())
    holes = (cut == 0).sum(dim=(1, 2, 3))
    assert int(holes.max()) == 8 * 16 and int(holes.min()) >= 4 * 8


@pytest.mark.parametrize("name", ["color", "translation", "cutout"])
def test_augmentations_repeat_with_their_generator_and_pass_gradients_twice(name: str) -> None:
    images = torch.rand(3, 2, 8, 10, generator=draws(), dtype=torch.float64).requires_grad_(True)
    first = augment(images, [name], draws(5))
    assert torch.equal(first, augment(images, [name], draws(5)))
    assert not torch.equal(first, augment(images, [name], draws(6)))
    assert torch.autograd.gradgradcheck(lambda x: augment(x, [name], draws(5)).square(), (images,))


def test_automatic_length_is_a_thousand_per_image_and_settings_survive_odd_counts() -> None:
    assert derive_settings(square_plan(8), 37, 1, None, GanConfig()).kimg == 37
    assert derive_settings(square_plan(8), 37, 1, None, GanConfig(batch_size=7)).n_steps == math.ceil(37000 / 7)
    assert derive_settings(square_plan(8), 2, 1, 0.0001, GanConfig()).n_steps == 1
    assert derive_settings(square_plan(8), 500, 1, None, GanConfig()).ema_kimg == 10.0


@pytest.mark.parametrize(
    "plan,kimg,config,named",
    [
        (plan_of((30, 32), [(2, 2)] * 2, [(3, 3)] * 3), None, NARROW, "30 x 32"),
        (square_plan(8), -1.0, NARROW, "-1.0"),
        (square_plan(8), None, GanConfig(augment=("colour",)), "colour"),
        (square_plan(8), None, GanConfig(style_mixing=1.5), "1.5"),
        (square_plan(8), None, GanConfig(r1_interval=0), "r1_interval"),
        (square_plan(8), None, GanConfig(r1_gamma=-2.0), "r1_gamma"),
        (plan_of((8, 8), [(2, 2)], [(3, 3)] * 3), None, NARROW, "kernels"),
    ],
)
def test_settings_no_training_can_use_are_refused_by_name(plan: Plan, kimg, config: GanConfig, named: str) -> None:
    with pytest.raises(InputError, match=named):
        derive_settings(plan, 4, 1, kimg, config)
