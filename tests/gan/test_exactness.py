"""The fast networks against the formulas as written: values, first and second derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from common.plan import Plan
from gan.functions import channel_products, leaky_relu_, scale_channels, styled_activation
from gan.model import Discriminator, GeneratorNetwork
from gan.settings import GanConfig, GanSettings, derive_settings
from gan.textbook import as_textbook
from gan.train_step import loss_as_fake, loss_as_real, path_lengths, r1_penalty

CONFIG = GanConfig(batch_size=4, channel_base=512, channel_max=24, z_dim=16, w_dim=12, style_mixing=1.0)


def settings_of(strides: list[tuple[int, int]], kernels: list[tuple[int, int]], size: tuple[int, int]) -> GanSettings:
    scheme = ("ZScoreNormalization",)
    plan = Plan(size, ((1, 1), *strides), tuple(kernels), (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)
    return derive_settings(plan, 8, 2, None, CONFIG)


PLANS = {
    "square": settings_of([(2, 2)] * 3, [(3, 3)] * 4, (32, 32)),
    "anisotropic": settings_of([(1, 2), (2, 2), (3, 1)], [(1, 3), (3, 3), (3, 1), (3, 3)], (24, 20)),
}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=sorted(PLANS))
def networks(request) -> tuple[GanSettings, GeneratorNetwork, Discriminator]:
    derived = PLANS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generator, discriminator = GeneratorNetwork(derived), Discriminator(derived)
        for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
            if "bias" in name or "strength" in name:  # they start at 0 or 1, where a forgotten factor would not show
                parameter.data += 0.3 * torch.randn_like(parameter)
    return derived, generator, discriminator


def four_losses(generator: GeneratorNetwork, discriminator: Discriminator, dtype: torch.dtype) -> dict[str, Tensor]:
    """The losses of the four phases on fixed random numbers."""
    generator, discriminator = generator.to(dtype), discriminator.to(dtype)
    random = draws(3)
    latents, cutoff = generator.draw_latents(4, random)
    noise = [maps.to(dtype) for maps in generator.draw_noise(4, random)]
    styles = generator.mixed_styles(latents.to(dtype), cutoff)
    fakes = generator.synthesise(styles, noise)
    reals = torch.randn(fakes.shape, generator=random).to(dtype).requires_grad_(True)
    lengths = path_lengths(fakes, styles, torch.randn(fakes.shape, generator=random).to(dtype))
    return {
        "generator_main": loss_as_real(discriminator(fakes)),
        "path_length": (lengths - 0.5).square().mean(),
        "discriminator_main": loss_as_fake(discriminator(fakes.detach())) + loss_as_real(discriminator(reals.detach())),
        "r1": r1_penalty(discriminator, reals, reals * 1.0),
    }


def relative_error(measured: Tensor, expected: Tensor) -> float:
    return float((measured.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("phase", ["generator_main", "path_length", "discriminator_main", "r1"])
def test_losses_and_gradients_in_float32_equal_the_formulas_in_float64(networks, phase: str) -> None:
    """Those of path length and R1 are derivatives of second order. 1e-5 relative, over all parameters of a network."""
    _, generator, discriminator = networks
    slow = [as_textbook(copy.deepcopy(network)) for network in (generator, discriminator)]
    name = "generator" if phase in ("generator_main", "path_length") else "discriminator"
    expected, measured = (
        four_losses(*slow, torch.float64)[phase],
        four_losses(generator, discriminator, torch.float32)[phase],
    )
    assert measured.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    measured.backward()
    trained, reference = (generator, slow[0]) if name == "generator" else (discriminator, slow[1])
    pairs = {
        key: (parameter.grad, other.grad)
        for (key, parameter), other in zip(trained.named_parameters(), reference.parameters(), strict=True)
    }
    assert {key for key, (ours, theirs) in pairs.items() if (ours is None) != (theirs is None or not theirs.any())} <= {
        key for key, (ours, theirs) in pairs.items() if ours is not None and not ours.any()
    }
    present = [(ours, theirs) for ours, theirs in pairs.values() if ours is not None and theirs is not None]
    assert len(present) > 8
    flat = [torch.cat([gradient.flatten().double() for gradient in side]) for side in zip(*present, strict=True)]
    assert relative_error(flat[0], flat[1]) < 1e-5


def test_the_textbook_shares_its_weights_and_changes_every_layer(networks) -> None:
    _, generator, discriminator = networks
    for network in (generator, discriminator):
        slow = as_textbook(copy.deepcopy(network))
        assert [n for n, _ in slow.named_parameters()] == [n for n, _ in network.named_parameters()]
        kinds = {type(module).__name__ for module in slow.modules() if list(module.parameters(recurse=False))}
        assert {kind for kind in kinds if not kind.startswith("Textbook")} <= {
            "Linear",
            "GeneratorNetwork",
            "ModulatedConv",
        }


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=draws(seed)).requires_grad_(True)


@pytest.mark.parametrize(
    "function,inputs",
    [
        (lambda x: leaky_relu_(x * 1.0), (double(2, 3, 4, 5),)),
        (scale_channels, (double(2, 3, 4, 5), double(2, 3, seed=1))),
        (channel_products, (double(2, 3, 4, 5), double(2, 3, 4, 5, seed=1))),
        (
            lambda x, scale, strength, bias: styled_activation(
                x, scale, double(2, 1, 4, 5, seed=7).detach(), strength, bias
            ),
            (
                double(2, 3, 4, 5),
                double(2, 3, seed=1),
                double(1, seed=2).detach().sum().requires_grad_(),
                double(3, seed=3),
            ),
        ),
    ],
    ids=["leaky_relu", "scale_channels", "channel_products", "styled_activation"],
)
def test_functions_have_right_derivatives_of_first_and_second_order(function, inputs) -> None:
    """By finite differences."""
    assert torch.autograd.gradcheck(lambda *x: function(*x).square(), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: function(*x).square(), inputs)


def test_an_activation_is_that_of_its_operations_one_by_one() -> None:
    x, scale, noise, bias = double(2, 3, 4, 5), double(2, 3, seed=1), double(2, 1, 4, 5, seed=2), double(3, seed=3)
    expected = nn.functional.leaky_relu(x * scale[:, :, None, None] + noise * 0.7 + bias[:, None, None], 0.2)
    strength = torch.tensor(0.7, dtype=torch.float64)
    assert torch.allclose(styled_activation(x, scale, noise, strength, bias), expected, rtol=1e-12)
