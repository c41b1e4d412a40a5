"""The generator's layers against references too slow and plain to be wrong: loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from support.slow_references import activated, assert_equal_to_second_order, correlate, enlarged, normal, reduced
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from gan.functions import upsample
from gan.layers import Linear, ResampledConv, minibatch_deviation
from gan.model import StyledConv, ToImage
from gan.train_step import loss_as_fake, loss_as_real

UPS = [((1, 1), (3, 3)), ((2, 2), (3, 3)), ((2, 1), (1, 3)), ((1, 2), (3, 3)), ((2, 2), (1, 1)), ((1, 2), (3, 1))]


@pytest.mark.parametrize("size", [1.0, 1e-4], ids=["", "where_the_epsilon_counts"])
@pytest.mark.parametrize("up,kernel", UPS)
def test_a_styled_convolution_is_that_of_weights_modulated_and_demodulated_for_every_image(up, kernel, size) -> None:
    layer = StyledConv(3, 2, kernel, 4, up)
    noise = normal(2, 1, 3 * up[0], 4 * up[1], seed=9)
    names = ("conv.conv.weight", "conv.affine.weight", "conv.affine.bias", "noise_strength", "bias")

    def fast(x: Tensor, w: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x, w, noise))

    def slow(x: Tensor, w: Tensor, weight: Tensor, affine: Tensor, shift: Tensor, strength: Tensor, bias: Tensor):
        styles = w @ affine.t() / math.sqrt(4) + shift
        modulated = weight[None] / math.sqrt(3 * kernel[0] * kernel[1]) * styles[:, None, :, None, None]
        norms = torch.stack([torch.stack([(one.square().sum() + 1e-8).sqrt() for one in image]) for image in modulated])
        demodulated = modulated / norms[:, :, None, None, None]
        padding = (kernel[0] // 2, kernel[1] // 2)
        y = correlate(x, demodulated, up, padding) if up == (1, 1) else enlarged(x, demodulated, up)
        return activated(y + noise.double() * strength + bias[:, None, None])

    inputs = [normal(2, 3, 3, 4), normal(2, 4, seed=1), size * normal(2, 3, *kernel, seed=2), normal(3, 4, seed=3)]
    inputs += [1 + 0.3 * normal(3, seed=4), torch.tensor(0.7), normal(2, seed=5)]
    assert_equal_to_second_order(fast, slow, inputs)


def test_the_image_output_is_modulated_and_not_demodulated() -> None:
    layer = ToImage(3, 2, 4)
    names = ("conv.conv.weight", "conv.affine.weight", "conv.affine.bias", "bias")

    def fast(x: Tensor, w: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x, w))

    def slow(x: Tensor, w: Tensor, weight: Tensor, affine: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
        styles = w @ affine.t() / math.sqrt(4) + shift
        modulated = weight[None] / math.sqrt(3) * styles[:, None, :, None, None]
        return correlate(x, modulated, (1, 1), (0, 0)) + bias[:, None, None]

    inputs = [normal(2, 3, 3, 4), normal(2, 4, seed=1), normal(2, 3, 1, 1, seed=2), normal(3, 4, seed=3)]
    assert_equal_to_second_order(fast, slow, [*inputs, normal(3, seed=4), normal(2, seed=5)])


@pytest.mark.parametrize(
    "down,kernel", [((1, 1), (3, 3)), ((2, 2), (3, 3)), ((2, 1), (3, 1)), ((1, 2), (1, 3)), ((2, 2), (1, 1))]
)
def test_a_shrinking_convolution_is_a_filter_and_a_strided_convolution_up_to_the_border(down, kernel) -> None:
    layer = ResampledConv(3, 2, kernel, down=down)

    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight}, (x, bias, 1.7))

    def slow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        gain = 1 / math.sqrt(3 * kernel[0] * kernel[1])
        return (reduced(x, (weight * gain).expand(2, -1, -1, -1, -1), down) + bias[:, None, None]) * 1.7

    assert_equal_to_second_order(fast, slow, [normal(2, 3, 6, 4), normal(2, 3, *kernel, seed=1), normal(2, seed=2)])


@pytest.mark.parametrize("factors", [(2, 2), (1, 2), (2, 1)])
def test_an_image_is_enlarged_by_zeros_and_the_filter_of_each_axis(factors) -> None:
    one = torch.eye(2, dtype=torch.float64)[None, :, :, None, None].expand(2, -1, -1, -1, -1)
    assert_equal_to_second_order(
        lambda x: upsample(x, factors), lambda x: enlarged(x, one, factors), [normal(2, 2, 3, 5)]
    )


@pytest.mark.parametrize("n_images,group_size,expected_size", [(4, 4, 4), (6, 4, 3), (8, 4, 4), (3, 8, 3)])
def test_minibatch_deviation_is_a_mean_of_deviations_over_each_group(n_images, group_size, expected_size) -> None:
    """Where the batch does not divide by the group, the next smaller size that does."""
    n_groups = n_images // expected_size

    def slow(x: Tensor) -> Tensor:
        channel = []
        for image in range(n_images):
            group = [x[member] for member in range(n_images) if member % n_groups == image % n_groups]
            mean = sum(group) / len(group)
            variance = sum((member - mean) ** 2 for member in group) / len(group)
            channel.append((variance + 1e-8).sqrt().mean().expand(1, *x.shape[2:]))
        return torch.stack(channel)

    x = normal(n_images, 3, 2, 4)
    assert torch.equal(minibatch_deviation(x, group_size)[:, :3], x)
    assert_equal_to_second_order(lambda x: minibatch_deviation(x, group_size)[:, 3:], slow, [x])


def test_equalised_weights_are_scaled_when_used_and_not_when_stored() -> None:
    layer = Linear(6, 3, lr_multiplier=0.01, bias=0.5)

    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight, "bias": bias}, (x, 1.3))

    def slow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = []
        for out in range(3):
            products = [weight[out, i] * 0.01 / math.sqrt(6) * x[:, i] for i in range(6)]
            rows.append((sum(products) + bias[out] * 0.01) * 1.3)
        return torch.stack(rows, dim=1)

    assert_equal_to_second_order(fast, slow, [normal(2, 6), normal(3, 6, seed=1), normal(3, seed=2)])
    assert torch.allclose(layer(torch.zeros(1, 6)), torch.tensor(0.5))
    wide = Linear(200, 300, lr_multiplier=0.01).weight
    assert wide.std().item() == pytest.approx(100, rel=0.02)
    assert ResampledConv(40, 50, (3, 3)).weight.std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(
    "layer,basis,expected",
    [
        (Linear(9, 4), torch.eye(9), 0.002 / 3),
        (Linear(9, 4, lr_multiplier=0.01), torch.eye(9), 0.002 / 3 * 0.01),
        (ResampledConv(4, 5, (1, 1)), torch.eye(4)[:, :, None, None], 0.002 / 2),
        (ResampledConv(1, 5, (3, 3)), F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1)), 0.002 / 3),
    ],
    ids=["linear", "mapping", "point", "three_by_three"],
)
def test_a_first_step_of_adam_moves_every_used_weight_by_the_equalised_learning_rate(layer, basis, expected) -> None:
    """Learning rate times multiplier over the root of the inputs, whatever the weight's scale: the point of it."""
    layer, basis = layer.double(), basis.double()
    before = layer(basis).detach()
    layer.weight.grad = normal(*layer.weight.shape, seed=3).double()
    torch.optim.Adam([layer.weight], lr=0.002, betas=(0.0, 0.99), eps=1e-12).step()
    moved = (layer(basis).detach() - before).abs()
    assert torch.allclose(moved, torch.full_like(moved, expected), rtol=1e-6)


def test_losses_are_the_logarithms_of_the_probabilities() -> None:
    def slow_as_real(logits: Tensor) -> Tensor:
        return -sum(torch.log(1 / (1 + torch.exp(-logit))) for logit in logits) / len(logits)

    def slow_as_fake(logits: Tensor) -> Tensor:
        probabilities = [1 - 1 / (1 + torch.exp(-logit)) for logit in logits]
        return -sum(torch.log(p) for p in probabilities) / len(logits)

    logits = 3 * normal(5)
    assert_equal_to_second_order(loss_as_real, slow_as_real, [logits])
    assert_equal_to_second_order(loss_as_fake, slow_as_fake, [logits])
    extreme = torch.tensor([-200.0, 200.0])
    assert loss_as_real(extreme).item() == 100 and loss_as_fake(extreme).item() == 100
