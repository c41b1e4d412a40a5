"""The phases of a step, the optimisers, the average and the styles against what the papers write."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from support.slow_references import activated, assert_equal_to_second_order, normal
from torch import Tensor, nn

import gan.train_step
from common.plan import Plan
from gan.batches import Batches
from gan.layers import Linear
from gan.model import Discriminator, GeneratorNetwork, MappingNetwork, StyledConv, ToImage
from gan.settings import GanConfig, GanSettings, derive_settings
from gan.textbook import as_textbook
from gan.train_step import TrainStep, path_lengths, r1_penalty
from gan.training import Training

CONFIG = GanConfig(
    batch_size=4, channel_base=64, channel_max=6, z_dim=5, w_dim=4, r1_interval=4, path_length_interval=3, augment=()
)
SCHEME = ("ZScoreNormalization",)
PLAN = Plan((12, 6), ((1, 1), (2, 1), (2, 2)), ((3, 3),) * 3, (1.0, 1.0), (0, 1, 2), SCHEME, (False,), ({},), 2)


def settings(config: GanConfig = CONFIG) -> GanSettings:
    return derive_settings(PLAN, 8, 2, 1.0, config)


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


def test_the_mean_of_path_lengths_is_a_number_and_not_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 4 has a number in its place; a derivative through these lengths' share in it would differ by little."""
    run = TrainStep(settings(), 3, torch.device("cpu"))
    run.mean_path_length += 0.01
    before, parameters = run.mean_path_length, list(run.generator.parameters())
    lengths: list[Tensor] = []
    penalties: list[Tensor] = []
    monkeypatch.setattr(
        gan.train_step, "path_lengths", lambda *arguments: lengths.append(path_lengths(*arguments)) or lengths[-1]
    )
    monkeypatch.setattr(run, "_descend", lambda _, penalty: penalties.append(penalty))
    run.path_length(torch.Generator().manual_seed(5))

    def gradient(penalty: Tensor) -> Tensor:
        of_each = torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)
        return torch.cat([one.flatten() for one in of_each if one is not None])

    def formula(mean: Tensor) -> Tensor:
        return (lengths[0] - mean).square().mean() * CONFIG.path_length_weight * CONFIG.path_length_interval

    mean = before.lerp(lengths[0].mean(), CONFIG.path_length_decay)
    found = gradient(penalties[0])
    assert torch.allclose(found, gradient(formula(mean.detach())), rtol=1e-5, atol=1e-9)
    share = float((gradient(formula(mean)) - found).norm() / found.norm())
    assert 0 < share < 0.02


def test_the_gradients_of_the_path_length_penalty_are_its_finite_differences() -> None:
    torch.manual_seed(0)
    generator = with_random_biases(GeneratorNetwork(settings()).double())
    noise = [maps.double() for maps in generator.draw_noise(2, torch.Generator().manual_seed(1))]
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
    run = TrainStep(settings(), 3, torch.device("cpu"))
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
    run = TrainStep(settings(), 3, torch.device("cpu"))
    with_random_biases(run.generator)
    slow = as_textbook(copy.deepcopy(run.generator)).double()
    run.optimizers["generator"].step = run.optimizers["generator"].zero_grad = lambda **_: None
    mean = 0.0
    for seed in (1, 2):
        run.path_length(torch.Generator().manual_seed(seed))
        random = torch.Generator().manual_seed(seed)
        latents, cutoff = slow.draw_latents(2, random)
        noise = [maps.double() for maps in slow.draw_noise(2, random)]
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
        phase = getattr(run.train_step, name)
        setattr(
            run.train_step, name, lambda *given, name=name, phase=phase: seen[name].append(run.step) or phase(*given)
        )
    for _ in range(9):
        run.advance()
    every = list(range(9))
    assert seen == {"path_length": [0, 3, 6], "r1": [0, 4, 8], "generator_main": every, "discriminator_main": every}


def test_the_mapping_alone_learns_at_a_hundredth() -> None:
    derived = settings()
    multipliers = {
        name: module.lr_multiplier
        for network in (GeneratorNetwork(derived), Discriminator(derived))
        for name, module in network.named_modules()
        if isinstance(module, Linear)
    }
    assert len(multipliers) == 2 + 5 + 3 + 2
    assert {name for name, multiplier in multipliers.items() if multiplier != 1} == {
        "mapping.layers.0",
        "mapping.layers.1",
    }
    assert multipliers["mapping.layers.0"] == 0.01


@pytest.mark.parametrize("name,interval", [("generator", 3), ("discriminator", 4)])
def test_an_optimisers_steps_are_those_of_adam_corrected_for_the_lazy_regularisation(name: str, interval: int) -> None:
    """StyleGAN2, appendix B: with c = k / (k + 1), learning rate c lr and second beta 0.99 ** c; the first is 0."""
    run = TrainStep(settings(), 3, torch.device("cpu"))
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
    run = TrainStep(settings(config), 3, torch.device("cpu"))
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
    generator, random = GeneratorNetwork(settings()), torch.Generator().manual_seed(0)
    cutoffs = [generator.draw_latents(1, random)[1] for _ in range(600)]
    mixed = [cutoff for cutoff in cutoffs if cutoff < generator.n_styles]
    assert len(mixed) / 600 == pytest.approx(0.9, abs=0.04)
    counts = [mixed.count(cutoff) / len(mixed) for cutoff in range(1, generator.n_styles)]
    assert sum(counts) == pytest.approx(1) and counts == pytest.approx([0.2] * 5, abs=0.06)
    never = GeneratorNetwork(settings(GanConfig(**{**CONFIG.__dict__, "style_mixing": 0.0})))
    assert {never.draw_latents(1, random)[1] for _ in range(50)} == {never.n_styles}


def slow_mapping(mapping: MappingNetwork, z: Tensor) -> Tensor:
    """One vector of z -> w."""
    w = z / (sum(number**2 for number in z) / len(z) + 1e-8).sqrt()
    for layer in mapping.layers:
        weight, bias = layer.weight.double() * 0.01 / math.sqrt(len(w)), layer.bias.double() * 0.01
        w = activated(torch.stack([sum(row[i] * w[i] for i in range(len(w))) for row in weight]) + bias)
    return w


@pytest.mark.parametrize("cutoff", [1, 4, 6])
def test_mixed_styles_are_the_first_latents_before_the_layer_and_the_seconds_from_it_on(cutoff: int) -> None:
    torch.manual_seed(0)
    generator = with_random_biases(GeneratorNetwork(settings()))

    def slow(latents: Tensor) -> Tensor:
        styles = [
            torch.stack([slow_mapping(generator.mapping, latents[int(layer >= cutoff), image]) for layer in range(6)])
            for image in range(3)
        ]
        return torch.stack(styles)

    assert_equal_to_second_order(lambda z: generator.mixed_styles(z, cutoff), slow, [normal(2, 3, 5)])


def test_layers_take_the_styles_in_order_and_an_image_output_that_of_the_next_convolution() -> None:
    generator = GeneratorNetwork(settings())
    taken: list[float] = []
    for module in generator.modules():
        if isinstance(module, StyledConv | ToImage):
            module.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[1][0, 0].item()))
    numbered = torch.arange(6.0)[None, :, None].expand(1, 6, 4)
    generator.synthesise(numbered, generator.draw_noise(1, torch.Generator().manual_seed(0)))
    assert taken == [0, 1, 1, 2, 3, 3, 4, 5]
