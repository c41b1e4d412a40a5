"""Losses of the four phases: generator, path length, discriminator, R1 (StyleGAN2, section 3.2 and appendix B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gan.functions import gradients_of_activations
from gan.model import Discriminator


def loss_as_real(logits: Tensor) -> Tensor:
    """Logistic loss of images to be called real: the discriminator's on real ones, the generator's on its own."""
    return F.softplus(-logits).mean()


def loss_as_fake(logits: Tensor) -> Tensor:
    """Logistic loss of images to be called fake: the discriminator's on the generator's."""
    return F.softplus(logits).mean()


def r1_penalty(discriminator: Discriminator, images: Tensor, augmented: Tensor) -> Tensor:
    """Squared gradient norm of the logits by the images before augmentation, mean over images (R1; of fakes: R2).

    ``augmented`` must be computed from ``images``, which must require gradients.
    """
    with gradients_of_activations():
        (gradient,) = torch.autograd.grad(discriminator(augmented).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """Length of the gradient of a random image projection by the styles, one per image (equation 4).

    ``noise``: N(0, 1), in the shape of ``images``.
    """
    height, width = images.shape[-2:]
    projection = (images * noise).sum() / math.sqrt(height * width)
    with gradients_of_activations():
        (gradient,) = torch.autograd.grad(projection, styles, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
