"""Networks and losses by themselves: shapes, conditions, and terms that do not depend on sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.diffusion_models import tiny_settings

from diffusion.autoencoder import Autoencoder
from diffusion.blocks import n_groups
from diffusion.denoiser import Denoiser
from diffusion.loss import build_discriminator, critic_loss, generator_loss
from diffusion.perceptual import build_perceptual, perceptual_distance
from diffusion.schedule import derive_schedule
from training.monitor import MonitorSchedule


def denoiser_that_says_something(**settings: int) -> Denoiser:
    """Several layers are 0 before training: nothing could be told apart."""
    torch.manual_seed(0)
    network = Denoiser(replace(tiny_settings(in_latents=False).denoiser, **settings))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_the_denoiser_is_conditioned_on_time_class_and_mask() -> None:
    network = denoiser_that_says_something(n_classes=3, n_context_channels=2)
    noisy, times = torch.randn(2, 1, 16, 16), torch.tensor([10.0, 900.0])
    prediction = network(noisy, times)
    assert prediction.shape == noisy.shape
    others = {
        "time": network(noisy, times + 50),
        "class": network(noisy, times, classes=torch.tensor([0, 2])),
        "context": network(noisy, times, context=torch.ones(2, 2, 16, 16)),
    }
    assert [name for name, other in others.items() if torch.allclose(prediction, other)] == []
    same = network(
        noisy,
        times,
        classes=torch.tensor([3, 3]),  # the one that stands for no class, for guidance
        context=torch.zeros(2, 2, 16, 16),
    )
    assert torch.allclose(prediction, same, atol=1e-6)


def test_checkpointing_changes_memory_and_no_gradient() -> None:
    gradients = []
    for is_checkpointed in (False, True):
        network = denoiser_that_says_something(checkpointing=is_checkpointed).train()
        network(torch.ones(1, 1, 16, 16), torch.tensor([5.0])).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients))


@pytest.mark.parametrize("size", [(12, 20), (8, 16, 12)])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_autoencoder_gives_back_what_it_got_in_shape(kind: str, size: tuple[int, ...]) -> None:
    settings = tiny_settings(in_latents=True, size=size, kind=kind, n_channels=2)
    network = Autoencoder(settings.autoencoder)
    images = torch.randn(2, 2, *size)
    made, term = network(images, torch.randn(2, 4, *settings.denoised_size))
    assert made.shape == images.shape and term.ndim == 0 and torch.isfinite(term)
    if kind == "vq":
        latents = network.moments(images)[0]
        entries = network.quantised(latents)[0].movedim(1, -1).reshape(-1, 4)
        distances = torch.cdist(entries, network.codebook)
        assert float(distances.detach().min(1).values.max()) < 1e-3  # each is an entry of the codebook


def test_what_keeps_latents_in_order_does_not_grow_with_their_number() -> None:
    """Defect 14: the original summed over the latents, so that its weight meant something else for every size."""
    torch.manual_seed(0)
    settings = tiny_settings(in_latents=True)
    network, image = Autoencoder(settings.autoencoder), torch.randn(1, 1, 1, 1)
    terms = []
    for edge in (64, 128):
        flat = image.expand(1, 1, edge, edge)
        terms.append(network(flat, torch.zeros(1, 4, edge // 2, edge // 2))[1].item())
    assert terms[0] == pytest.approx(terms[1], rel=0.1)


def test_the_critics_own_loss_has_no_weight_and_its_closed_form() -> None:
    """Defect 14: the original weighted it too. Least squares: 0 for a critic that is right, 1/2 for one that says 1."""
    made, real = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)

    class Says(torch.nn.Module):
        def __init__(self, constant: float | None) -> None:
            super().__init__()
            self.constant = constant

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [images if self.constant is None else torch.full_like(images, self.constant)]

    assert float(critic_loss(Says(None), made, real)) == 0
    assert float(critic_loss(Says(1.0), made, real)) == pytest.approx(0.5)
    assert float(generator_loss(Says(1.0), made)) == 0
    assert float(generator_loss(Says(0.0), made)) == 1


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (16, 12, 40), (64, 64)])
def test_there_is_a_critic_where_images_are_large_enough_for_patches(size: tuple[int, ...]) -> None:
    critic = build_discriminator(2, size, 8)
    assert critic is not None and min(critic(torch.randn(2, 2, *size))[-1].shape) >= 1
    assert build_discriminator(2, (size[0], 4), 8) is None


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_the_perceptual_term_takes_any_channels_without_a_download(n_channels: int) -> None:
    """Defect 4."""
    network, draws = build_perceptual("efficientnet_lite0"), torch.Generator().manual_seed(0)
    assert network is not None
    image = torch.rand(2, n_channels, 16, 24) * 2 - 1
    noisy = (image + 0.1 * torch.randn_like(image)).requires_grad_()
    worse = image + 0.5 * torch.randn_like(image)
    near = perceptual_distance(network, noisy, image, draws)
    near.backward()
    assert float(perceptual_distance(network, image, image, draws)) == pytest.approx(0, abs=1e-6)
    assert 0 < near.item() < perceptual_distance(network, worse, image, draws).item()
    assert noisy.grad is not None and float(noisy.grad.abs().sum()) > 0
    volume = torch.rand(1, n_channels, 8, 16, 16)
    assert float(perceptual_distance(network, volume, volume, draws)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("base", "groups"), [(8, 2), (16, 4), (24, 6), (32, 8), (64, 16), (128, 32), (256, 32)])
def test_group_norms_have_four_channels_or_more_to_a_group(base: int, groups: int) -> None:
    assert n_groups(base) == groups


def test_samples_have_a_share_of_a_trainings_time_and_a_short_one_has_no_gauge() -> None:
    short, long = (tiny_settings(in_latents=True, n_epochs=20, steps_per_epoch=n) for n in (5, 50_000))
    assert derive_schedule(short, 0.1, 50).n_references == 0
    schedule = derive_schedule(long, 0.1, 50)
    assert schedule.n_references == 50 and schedule.n_samples >= 32
    assert schedule.is_due(0) and schedule.is_due(schedule.every)
    assert MonitorSchedule(3, 32, 0).is_due(6) and not MonitorSchedule(3, 32, 0).is_due(4)
    assert derive_schedule(long, 0.0, 0).n_references == 0
