"""Losses of the four phases: generator, path length, discriminator, R1 (StyleGAN2, section 3.2 and appendix B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gan.model import Discriminator, Generator


def draw_noise(network: Generator, n_images: int, generator: torch.Generator, device: torch.device) -> list[Tensor]:
    """Fresh N(0, 1) noise maps for ``n_images``, drawn on the CPU so that every device sees the same numbers."""
    shapes = [(n_images, 1, *size) for size in network.noise_sizes()]
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def draw_styles(network: Generator, n_images: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Styles (b, n_styles, w_dim); with the style-mixing probability a second latent takes over from one cutoff on."""
    config = network.settings.config
    latents = torch.randn(2, n_images, config.z_dim, generator=generator).to(device)
    is_mixed = float(torch.rand((), generator=generator)) < config.style_mixing
    cutoff = int(torch.randint(1, network.n_styles, (), generator=generator)) if is_mixed else network.n_styles
    first = network.mapping(latents[0])[:, None].expand(-1, cutoff, -1)
    if not is_mixed:
        return first
    second = network.mapping(latents[1])[:, None].expand(-1, network.n_styles - cutoff, -1)
    return torch.cat([first, second], dim=1)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating logistic loss."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Logistic loss."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def r1_penalty(discriminator: Discriminator, reals: Tensor, augmented: Tensor) -> Tensor:
    """Squared gradient norm of the real logits by the images before augmentation, mean over images (R1).

    ``augmented`` must be computed from ``reals``, which must require gradients.
    """
    (gradient,) = torch.autograd.grad(discriminator(augmented).sum(), reals, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, styles: Tensor, generator: torch.Generator) -> Tensor:
    """Length of the gradient of a random image projection by the styles, one per image (equation 4)."""
    height, width = images.shape[-2:]
    projection = torch.randn(images.shape, generator=generator).to(images.device) / math.sqrt(height * width)
    (gradient,) = torch.autograd.grad((images * projection).sum(), styles, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
