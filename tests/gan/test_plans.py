"""Networks for every plan nnU-Net can emit: sizes, parameters and what changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.plan import Pair, Plan
from gan.model import Discriminator, GeneratorNetwork, SynthesisBlock
from gan.settings import GanConfig, GanSettings, derive_settings
from gan.train_step import path_lengths, r1_penalty

NARROW = GanConfig(batch_size=2, channel_base=40, channel_max=4, z_dim=8, w_dim=8)
LARGEST_PRODUCT = 8  # of the strides of an axis, so that images stay small


def plan_of(bottleneck: Pair, strides: list[Pair], kernels: list[Pair]) -> Plan:
    height, width = (bottleneck[axis] * math.prod(stride[axis] for stride in strides) for axis in (0, 1))
    scheme = ("ZScoreNormalization",)
    return Plan((height, width), ((1, 1), *strides), tuple(kernels), (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """2 to 8 stages, strides 1 and 2 and kernels 1 and 3 on each axis, bottlenecks of 3 to 7 on each, odd ones too."""
    strides: list[Pair] = []
    for _ in range(draw(st.integers(1, 7))):
        made = [math.prod(stride[axis] for stride in strides) for axis in (0, 1)]
        axes = [draw(st.sampled_from([1, 2] if product < LARGEST_PRODUCT else [1])) for product in made]
        strides.append((axes[0], axes[1]))
    kernel, side = st.tuples(*[st.sampled_from([1, 3])] * 2), st.integers(3, 7)
    return plan_of((draw(side), draw(side)), strides, [draw(kernel) for _ in range(len(strides) + 1)])


def sizes_of(plan: Plan) -> list[Pair]:
    """From the whole image to the bottleneck."""
    sizes = [plan.patch_size_px]
    for rows, columns in plan.strides[1:]:
        sizes.append((sizes[-1][0] // rows, sizes[-1][1] // columns))
    return sizes


def counts_by_hand(plan: Plan, n_channels: int, config: GanConfig) -> tuple[int, int]:
    """Parameters of the generator and the discriminator: an affine style, a noise strength and a bias a convolution."""
    sizes = sizes_of(plan)
    maps = [max(1, min(config.channel_max, config.channel_base // int(math.sqrt(h * w)))) for h, w in sizes]
    taps = [rows * columns for rows, columns in plan.kernel_sizes]
    affine = config.w_dim + 1
    generator = (config.z_dim + 1) * config.w_dim + (config.mapping_layers - 1) * affine * config.w_dim
    generator += maps[-1] * sizes[-1][0] * sizes[-1][1]
    discriminator = n_channels * maps[0] + maps[0]
    for stage, n in enumerate(maps):
        generator += taps[stage] * n * n + affine * n + 1 + n  # at its size
        generator += n * n_channels + affine * n + n_channels  # to the image
        if stage + 1 < len(maps):
            below = maps[stage + 1]
            generator += taps[stage] * below * n + affine * below + 1 + n  # from the size below
            discriminator += 9 * n * n + n + taps[stage + 1] * n * below + below + n * below
    n = maps[-1]
    discriminator += 9 * (n + 1) * n + n + (sizes[-1][0] * sizes[-1][1] * n + 1) * n + n + 1
    return generator, discriminator


def output_shapes(network: nn.Module, name: str) -> list[tuple[int, ...]]:
    """Of each block, filled in when the network runs."""
    shapes: list[tuple[int, ...]] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
        shapes.extend(tuple(one.shape) for one in (output if isinstance(output, tuple) else (output,)))

    for block in getattr(network, name):
        block.register_forward_hook(note)
    return shapes


@hypothesis_settings(max_examples=40, deadline=None, derandomize=True)
@given(plans(), st.integers(1, 5))
@example(plan_of((3, 3), [(1, 2)] * 7, [(1, 3)] * 8), 1)
@example(plan_of((5, 4), [(2, 1), (1, 1), (1, 2)], [(3, 1), (1, 1), (3, 3), (1, 3)]), 5)
def test_every_stage_has_the_plans_size_and_every_weight_a_place(plan: Plan, n_channels: int) -> None:
    derived: GanSettings = derive_settings(plan, 4, n_channels, None, NARROW)
    torch.manual_seed(0)
    generator, discriminator = GeneratorNetwork(derived), Discriminator(derived)
    counted = tuple(sum(p.numel() for p in network.parameters()) for network in (generator, discriminator))
    assert counted == counts_by_hand(plan, n_channels, NARROW)
    sizes, maps = sizes_of(plan), derived.channels
    upwards = [((2, n, *size), (2, n_channels, *size)) for n, size in zip(maps[::-1], sizes[::-1], strict=True)]
    made, judged = output_shapes(generator, "blocks"), output_shapes(discriminator, "blocks")
    for block in generator.blocks:
        for convolution in ("conv0", "conv1")[-block.n_convs :] if isinstance(block, SynthesisBlock) else ():
            nn.init.ones_(getattr(block, convolution).noise_strength)  # 0 at first: would hide a map of a wrong size
    noise = generator.draw_noise(2, torch.Generator().manual_seed(0))
    styles = torch.randn(2, 2 * len(sizes), NARROW.w_dim, requires_grad=True)
    images = generator.synthesise(styles, noise)
    assert made == [shape for stage in upwards for shape in stage] and images.shape == upwards[-1][1]
    reals = images.detach().requires_grad_(True)
    assert discriminator(reals).shape == (2,)
    assert judged == [(2, n, *size) for n, size in zip(maps[1:], sizes[1:], strict=True)]
    path_lengths(images, styles, torch.randn(images.shape)).sum().backward()
    r1_penalty(discriminator, reals, reals * 1.0).backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("n_doublings", [1, 2, 4, 6])
def test_a_power_of_two_square_with_strides_of_2_counts_as_the_standard_architecture(n_doublings: int) -> None:
    """Written out for ``test_gan_layers`` layer by layer; here over sizes, with the plan's count beside it."""
    from support.gan_trainings import standard_count

    config = GanConfig(channel_base=256, channel_max=16, z_dim=24, w_dim=20)
    plan = plan_of((4, 4), [(2, 2)] * n_doublings, [(3, 3)] * (n_doublings + 1))
    size = 4 * 2**n_doublings
    channels = {4 * 2**i: min(16, 256 // (4 * 2**i)) for i in range(n_doublings + 1)}
    derived = derive_settings(plan, 4, 3, None, config)
    with torch.device("meta"):
        counted = tuple(sum(p.numel() for p in net(derived).parameters()) for net in (GeneratorNetwork, Discriminator))
    assert counted == standard_count(size, channels, 3, 24, 20) == counts_by_hand(plan, 3, config)


def test_at_1024_pixels_the_counts_are_those_published_for_stylegan2() -> None:
    """Config F with its eight mapping layers: the totals its authors' code prints."""
    plan = plan_of((4, 4), [(2, 2)] * 8, [(3, 3)] * 9)
    derived = derive_settings(plan, 4, 3, None, GanConfig(mapping_layers=8))
    with torch.device("meta"):
        counted = [sum(p.numel() for p in net(derived).parameters()) for net in (GeneratorNetwork, Discriminator)]
    assert counted == [30_370_060, 29_012_513]
