"""The generator's operations against references too slow and plain to be wrong: loops, in float64."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from common.plan import Pair, Plan
from gan.augment import augment
from gan.batches import Batches
from gan.draws import draw_latents, draw_noise
from gan.functions import upsample
from gan.layers import Linear, ResampledConv, minibatch_deviation
from gan.loss import loss_as_fake, loss_as_real, path_lengths, r1_penalty
from gan.model import Discriminator, Generator, Mapping, StyledConv, ToImage
from gan.phases import Phases
from gan.settings import GanConfig, GanSettings, derive_settings
from gan.textbook import as_textbook
from gan.training import Training

CONFIG = GanConfig(
    batch_size=4, channel_base=64, channel_max=6, z_dim=5, w_dim=4, r1_interval=4, path_length_interval=3, augment=()
)
SCHEME = ("ZScoreNormalization",)
PLAN = Plan((12, 6), ((1, 1), (2, 1), (2, 2)), ((3, 3),) * 3, (1.0, 1.0), (0, 1, 2), SCHEME, (False,), ({},), 2)


def settings(config: GanConfig = CONFIG) -> GanSettings:
    return derive_settings(PLAN, 8, 2, 1.0, config)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def derivatives(function: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The value, its first derivatives by every input and their derivatives along a random direction."""
    inputs = [one.to(dtype).requires_grad_(True) for one in inputs]
    value = function(*inputs)
    # squared, so that a linear function has a second derivative too
    weighted = (value.square() * normal(*value.shape, seed=91).to(dtype)).sum()
    first = torch.autograd.grad(weighted, inputs, create_graph=True)
    along = [(one * normal(*one.shape, seed=92 + index).to(dtype)).sum() for index, one in enumerate(first)]
    second = torch.autograd.grad(torch.stack(along).sum(), inputs)
    return [one.detach().double() for one in (value, *first, *second)]


def assert_equal_to_second_order(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: Sequence[Tensor]
) -> None:
    """Fast in float32 is slow in float64, derivatives of first and second order included, within 1e-5 relative."""
    measured, expected = derivatives(fast, inputs, torch.float32), derivatives(slow, inputs, torch.float64)
    for index, (ours, theirs) in enumerate(zip(measured, expected, strict=True)):
        assert ours.shape == theirs.shape and theirs.norm() > 0, index
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), index


def correlate(x: Tensor, weights: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """``weights`` (b, n_out, n_in, kh, kw) are those of each image. One output pixel and one tap at a time."""
    kernel = weights.shape[3:]
    size = [(x.shape[2 + a] + 2 * padding[a] - kernel[a]) // stride[a] + 1 for a in (0, 1)]
    pixels = []
    for row, column in itertools.product(range(size[0]), range(size[1])):
        pixel = x.new_zeros(weights.shape[:2])
        for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
            r, c = row * stride[0] + i - padding[0], column * stride[1] + j - padding[1]
            if 0 <= r < x.shape[2] and 0 <= c < x.shape[3]:
                pixel = pixel + (weights[..., i, j] * x[:, None, :, r, c]).sum(dim=2)
        pixels.append(pixel)
    return torch.stack(pixels, dim=-1).unflatten(-1, size)


def filtered(x: Tensor, axis: int, factor: int, before: int, n: int) -> Tensor:
    """``n`` samples of the triangle filter with zeros around ``x``; the first begins ``before`` samples before it."""
    taps = [factor - abs(tap + 0.5 - factor) for tap in range(2 * factor)]
    samples = []
    for position in range(n):
        sample = torch.zeros_like(x.select(axis, 0))
        for tap, weight in enumerate(taps):
            if 0 <= position + tap - before < x.shape[axis]:
                sample = sample + x.select(axis, position + tap - before) * (weight / sum(taps))
        samples.append(sample)
    return torch.stack(samples, dim=axis)


def enlarged(x: Tensor, weights: Tensor, factors: Pair) -> Tensor:
    """Zeros between the pixels, a full convolution, the filter with the gain of ``factors``, along each axis.

    The window of an output pixel is centred on it: where the two filters together have an even length, half a pixel
    before.
    """
    n_images, n_channels, height, width = x.shape
    spread = x.new_zeros(n_images, n_channels, height * factors[0], width * factors[1])
    for row, column in itertools.product(range(height), range(width)):
        spread[:, :, row * factors[0], column * factors[1]] = x[:, :, row, column]
    kernel = weights.shape[3:]
    full = [kernel[a] - 1 if factors[a] > 1 else kernel[a] // 2 for a in (0, 1)]
    x = correlate(spread, weights.flip(3, 4), (1, 1), (full[0], full[1]))  # a convolution: turned round
    for axis, factor, length in ((2, factors[0], kernel[0]), (3, factors[1], kernel[1])):
        if factor > 1:
            before = math.ceil((2 * factor - 1 + factor - length) / 2)
            x = filtered(x, axis, factor, before, spread.shape[axis]) * factor
    return x


def reduced(x: Tensor, weights: Tensor, factors: Pair) -> Tensor:
    """The filter along the axes that shrink, then a strided convolution; windows centred on the output pixels."""
    kernel = weights.shape[3:]
    for axis, factor, length in ((2, factors[0], kernel[0]), (3, factors[1], kernel[1])):
        if factor > 1:
            before = math.ceil((factor + length - 1) / 2)
            x = filtered(x, axis, factor, before, x.shape[axis] + length - factor)
    still = [kernel[a] // 2 if factors[a] == 1 else 0 for a in (0, 1)]
    return correlate(x, weights, factors, (still[0], still[1]))


def activated(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


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


def test_the_mapping_alone_learns_at_a_hundredth() -> None:
    derived = settings()
    multipliers = {
        name: module.lr_multiplier
        for network in (Generator(derived), Discriminator(derived))
        for name, module in network.named_modules()
        if isinstance(module, Linear)
    }
    assert len(multipliers) == 2 + 5 + 3 + 2
    assert {name for name, multiplier in multipliers.items() if multiplier != 1} == {
        "mapping.layers.0",
        "mapping.layers.1",
    }
    assert multipliers["mapping.layers.0"] == 0.01


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


def with_random_biases(network: nn.Module) -> nn.Module:
    """Biases and noise strengths start at 0 or 1, where a forgotten factor would not show."""
    for index, (name, parameter) in enumerate(network.named_parameters()):
        if "bias" in name or "strength" in name:
            parameter.data += 0.3 * normal(*parameter.shape, seed=index).to(parameter.dtype)
    return network


def assert_gradients_are_finite_differences(network: nn.Module, penalty: Callable[[], Tensor]) -> None:
    """Of ``penalty`` along a random direction of every parameter of a float64 ``network``."""
    network.zero_grad()
    penalty().backward()
    n_moved = 0
    for index, (name, parameter) in enumerate(network.named_parameters()):
        direction = normal(*parameter.shape, seed=index).double()
        kept, values = parameter.data.clone(), []
        for step in (1e-6, -1e-6):
            parameter.data = kept + step * direction
            values.append(penalty().item())
        parameter.data = kept
        slope = (values[0] - values[1]) / 2e-6
        derivative = 0.0 if parameter.grad is None else float((parameter.grad * direction).sum())
        assert derivative == pytest.approx(slope, rel=1e-5, abs=1e-7), name
        n_moved += abs(slope) > 1e-6
    assert n_moved > 6


def test_the_gradients_of_r1_are_its_finite_differences() -> None:
    torch.manual_seed(0)
    discriminator = with_random_biases(Discriminator(settings()).double())
    reals = normal(4, 2, 12, 6).double().requires_grad_(True)
    assert_gradients_are_finite_differences(discriminator, lambda: r1_penalty(discriminator, reals, reals * 1.0))


def test_the_gradients_of_the_path_length_penalty_are_its_finite_differences() -> None:
    torch.manual_seed(0)
    generator = with_random_biases(Generator(settings()).double())
    noise = [maps.double() for maps in draw_noise(generator, 2, torch.Generator().manual_seed(1))]
    latents, projection = normal(2, 2, 5).double(), normal(2, 2, 12, 6, seed=3).double()

    def penalty() -> Tensor:
        styles = generator.mixed_styles(latents, 3)
        return (path_lengths(generator.synthesise(styles, noise), styles, projection) - 0.4).square().mean()

    assert_gradients_are_finite_differences(generator, penalty)


def flat_gradient(network: nn.Module) -> Tensor:
    """None counts as zero: a bias has no second derivative."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return torch.cat([gradient.flatten().double() for gradient in gradients])


def test_the_phase_of_r1_descends_half_gamma_times_the_interval() -> None:
    run = Phases(settings(), 3, torch.device("cpu"))
    with_random_biases(run.discriminator)
    slow = as_textbook(copy.deepcopy(run.discriminator)).double()
    run.optimizers["discriminator"].step = run.optimizers["discriminator"].zero_grad = lambda **_: None
    reals = normal(4, 2, 12, 6)
    measured = run.r1(reals, torch.Generator())["r1"]
    images = reals.double().requires_grad_(True)
    slopes = [torch.autograd.grad(slow(images)[i], images, create_graph=True)[0] for i in range(4)]
    # the deviation of a group lets every logit depend on every image: the sum of the logits is what is derived
    expected = sum(sum(slopes)[i].square().sum() for i in range(4)) / 4
    (10.0 / 2 * 4 * expected).backward()
    assert measured.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = flat_gradient(run.discriminator), flat_gradient(slow)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_phase_of_path_length_pulls_half_a_batch_to_the_running_mean_times_the_interval() -> None:
    run = Phases(settings(), 3, torch.device("cpu"))
    with_random_biases(run.generator)
    slow = as_textbook(copy.deepcopy(run.generator)).double()
    run.optimizers["generator"].step = run.optimizers["generator"].zero_grad = lambda **_: None
    mean = 0.0
    for seed in (1, 2):
        run.path_length(torch.Generator().manual_seed(seed))
        random = torch.Generator().manual_seed(seed)
        latents, cutoff = draw_latents(slow, 2, random)
        noise = [maps.double() for maps in draw_noise(slow, 2, random)]
        projection = torch.randn(2, 2, 12, 6, generator=random).double()
        styles = slow.mixed_styles(latents.double(), cutoff)
        lengths = []
        for image, projected in zip(slow.synthesise(styles, noise), projection, strict=True):
            (slope,) = torch.autograd.grad((image * projected).sum() / math.sqrt(72), styles, create_graph=True)
            lengths.append((slope.square().sum() / slow.n_styles).sqrt())
        mean += 0.01 * (sum(lengths).item() / 2 - mean)
        assert run.mean_path_length.item() == pytest.approx(mean, rel=1e-5)
        slow.zero_grad()
        (3 * 2.0 * sum((length - mean) ** 2 for length in lengths) / 2).backward()
        ours, theirs = flat_gradient(run.generator), flat_gradient(slow)
        assert ours.shape == theirs.shape and (ours - theirs).norm() <= 1e-5 * theirs.norm()
        run.generator.zero_grad()


def test_regularisations_come_every_interval_beginning_with_the_first_step() -> None:
    images = torch.randint(0, 256, (8, 2, 12, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    run = Training(Batches(images, settings(), 3), settings(), 3, torch.device("cpu"))
    seen: dict[str, list[int]] = {"path_length": [], "r1": [], "generator_main": [], "discriminator_main": []}
    for name in seen:
        phase = getattr(run.phases, name)
        setattr(run.phases, name, lambda *given, name=name, phase=phase: seen[name].append(run.step) or phase(*given))
    for _ in range(9):
        run.advance()
    every = list(range(9))
    assert seen == {"path_length": [0, 3, 6], "r1": [0, 4, 8], "generator_main": every, "discriminator_main": every}


@pytest.mark.parametrize("name,interval", [("generator", 3), ("discriminator", 4)])
def test_an_optimisers_steps_are_those_of_adam_corrected_for_the_lazy_regularisation(name: str, interval: int) -> None:
    """StyleGAN2, appendix B: with c = k / (k + 1), learning rate c lr and second beta 0.99 ** c; the first is 0."""
    run = Phases(settings(), 3, torch.device("cpu"))
    parameter = run.generator.constant if name == "generator" else run.discriminator.conv.weight
    correction = interval / (interval + 1)
    beta, rate = 0.99**correction, 0.002 * correction
    expected, square = parameter.detach().double().clone(), torch.zeros(parameter.shape, dtype=torch.float64)
    start = expected.clone()
    for t in (1, 2, 3):
        slope = normal(*parameter.shape, seed=t) * 10.0 ** (t - 2)
        run._descend(name, (parameter * slope).sum())
        square = beta * square + (1 - beta) * slope.double() ** 2
        expected -= rate * slope.double() / ((square / (1 - beta**t)).sqrt() + 1e-8)
    assert (parameter - expected).norm() <= 1e-4 * (expected - start).norm()  # rounded to float32 beside the weight


def test_the_weight_average_follows_every_parameter_by_the_half_life() -> None:
    config = GanConfig(**{**CONFIG.__dict__, "ema_kimg": 0.008})  # two steps of 4 images
    run = Phases(settings(config), 3, torch.device("cpu"))
    averages = [parameter.detach().double().clone() for parameter in run.generator.parameters()]
    for step in range(4):
        run.generator_main(torch.Generator().manual_seed(step))
        run.average_weights()
        for average, parameter in zip(averages, run.generator.parameters(), strict=True):
            average += (1 - math.sqrt(0.5)) * (parameter.detach().double() - average)
    for average, parameter, last in zip(averages, run.average.parameters(), run.generator.parameters(), strict=True):
        assert (parameter - average).norm() <= 1e-5 * average.norm().clamp_min(1e-4)
        assert not torch.equal(parameter, last) and not parameter.requires_grad


def test_a_batch_is_mixed_with_its_probability_from_any_layer_but_the_first() -> None:
    generator, random = Generator(settings()), torch.Generator().manual_seed(0)
    cutoffs = [draw_latents(generator, 1, random)[1] for _ in range(600)]
    mixed = [cutoff for cutoff in cutoffs if cutoff < generator.n_styles]
    assert len(mixed) / 600 == pytest.approx(0.9, abs=0.04)
    counts = [mixed.count(cutoff) / len(mixed) for cutoff in range(1, generator.n_styles)]
    assert sum(counts) == pytest.approx(1) and counts == pytest.approx([0.2] * 5, abs=0.06)
    never = Generator(settings(GanConfig(**{**CONFIG.__dict__, "style_mixing": 0.0})))
    assert {draw_latents(never, 1, random)[1] for _ in range(50)} == {never.n_styles}


def slow_mapping(mapping: Mapping, z: Tensor) -> Tensor:
    """One vector of z -> w."""
    w = z / (sum(number**2 for number in z) / len(z) + 1e-8).sqrt()
    for layer in mapping.layers:
        weight, bias = layer.weight.double() * 0.01 / math.sqrt(len(w)), layer.bias.double() * 0.01
        w = activated(torch.stack([sum(row[i] * w[i] for i in range(len(w))) for row in weight]) + bias)
    return w


@pytest.mark.parametrize("cutoff", [1, 4, 6])
def test_mixed_styles_are_the_first_latents_before_the_layer_and_the_seconds_from_it_on(cutoff: int) -> None:
    torch.manual_seed(0)
    generator = with_random_biases(Generator(settings()))

    def slow(latents: Tensor) -> Tensor:
        styles = [
            torch.stack([slow_mapping(generator.mapping, latents[int(layer >= cutoff), image]) for layer in range(6)])
            for image in range(3)
        ]
        return torch.stack(styles)

    assert_equal_to_second_order(lambda z: generator.mixed_styles(z, cutoff), slow, [normal(2, 3, 5)])


def test_layers_take_the_styles_in_order_and_an_image_output_that_of_the_next_convolution() -> None:
    generator = Generator(settings())
    taken: list[float] = []
    for module in generator.modules():
        if isinstance(module, StyledConv | ToImage):
            module.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[1][0, 0].item()))
    numbered = torch.arange(6.0)[None, :, None].expand(1, 6, 4)
    generator.synthesise(numbered, draw_noise(generator, 1, torch.Generator().manual_seed(0)))
    assert taken == [0, 1, 1, 2, 3, 3, 4, 5]


def slow_color(image: Tensor, numbers: list[float]) -> Tensor:
    brightness, saturation, contrast = numbers[0] - 0.5, numbers[1] * 2, numbers[2] + 0.5
    channels, height, width = image.shape
    pixels = {}
    for row, column in itertools.product(range(height), range(width)):
        bright = [image[channel, row, column] + brightness for channel in range(channels)]
        grey = sum(bright) / channels
        for channel in range(channels):
            pixels[channel, row, column] = grey + (bright[channel] - grey) * saturation
            if channels == 1:
                pixels[channel, row, column] = bright[channel]
    mean = sum(pixels.values()) / len(pixels)
    return torch.stack([mean + (pixels[at] - mean) * contrast for at in sorted(pixels)]).reshape(image.shape)


def slow_translation(image: Tensor, numbers: list[float]) -> Tensor:
    _, height, width = image.shape
    reach = [math.floor(size / 8 + 0.5) for size in (height, width)]
    # the numbers' lowest are the farthest down and to the right
    down, right = (r - math.floor(number * (2 * r + 1)) for r, number in zip(reach, numbers, strict=True))
    moved = torch.zeros_like(image)
    for row, column in itertools.product(range(height), range(width)):
        if 0 <= row - down < height and 0 <= column - right < width:
            moved[:, row, column] = image[:, row - down, column - right]
    return moved


def slow_cutout(image: Tensor, numbers: list[float]) -> Tensor:
    _, height, width = image.shape
    ranges = []
    for size, number in zip((height, width), numbers, strict=True):
        length = math.floor(size / 2 + 0.5)
        # an even length has its centre between two pixels: one position more
        first = math.floor(number * (size + 1 if length % 2 == 0 else size)) - length // 2
        ranges.append(range(first, first + length))
    cut = image.clone()
    for row, column in itertools.product(range(height), range(width)):
        if row in ranges[0] and column in ranges[1]:
            cut[:, row, column] = 0
    return cut


SLOW_AUGMENTATIONS = {"color": (slow_color, 3), "translation": (slow_translation, 2), "cutout": (slow_cutout, 2)}


@pytest.mark.parametrize("n_channels,size", [(1, (4, 12)), (3, (5, 9))])
@pytest.mark.parametrize("names", [("color",), ("translation",), ("cutout",), ("color", "translation", "cutout")])
def test_augmentations_are_those_of_a_loop_with_the_same_random_numbers(names, n_channels: int, size: Pair) -> None:
    n_images = 6

    def slow(images: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(7)
        for name in names:
            function, n_numbers = SLOW_AUGMENTATIONS[name]
            numbers = [torch.rand(n_images, generator=random).tolist() for _ in range(n_numbers)]
            images = torch.stack([function(image, list(drawn)) for image, *drawn in zip(images, *numbers, strict=True)])
        return images

    images = normal(n_images, n_channels, *size)
    assert_equal_to_second_order(lambda x: augment(x, names, torch.Generator().manual_seed(7)), slow, [images])
