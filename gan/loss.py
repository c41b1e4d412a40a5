"""Losses of the four phases: generator, path length, discriminator, R1 (StyleGAN2, section 3.2 and appendix B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gan.model import Discriminator


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


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """Length of the gradient of a random image projection by the styles, one per image (equation 4).

    ``noise``: N(0, 1), in the shape of ``images``.
    """
    height, width = images.shape[-2:]
    (gradient,) = torch.autograd.grad((images * noise).sum() / math.sqrt(height * width), styles, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
