"""The adversarial term of the autoencoder's loss: a critic of patches, and its least-squares losses."""

from __future__ import annotations

import math

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.settings import Size

SHORTEST_CRITICISED_AXIS = 8  # voxels; a shorter axis has no patches
MAX_CRITIC_LAYERS = 3


def build_discriminator(n_channels: int, size: Size, base_channels: int) -> nn.Module | None:
    """A critic of patches for images of ``size``; None where an axis is too short for patches.

    Its norm is instance norm: the statistics of batch norm differ between a batch and its parts.
    """
    shortest = min(size)
    if shortest < SHORTEST_CRITICISED_AXIS:
        return None
    n_layers = max(1, min(MAX_CRITIC_LAYERS, int(math.log2(shortest / SHORTEST_CRITICISED_AXIS))))
    critic: nn.Module = PatchDiscriminator(len(size), base_channels, n_channels, num_layers_d=n_layers, norm="INSTANCE")
    return critic


def generator_loss(critic: nn.Module, made: Tensor) -> Tensor:
    """Mean of (D(made) - 1)^2 (Mao et al. 2017, equation 9): small where the critic takes ``made`` for real."""
    judged = critic(made)[-1]
    return F.mse_loss(judged, torch.ones_like(judged))


def critic_loss(critic: nn.Module, made: Tensor, real: Tensor) -> Tensor:
    """Half the mean of D(made)^2 + (D(real) - 1)^2: small where the critic tells the two apart."""
    of_made, of_real = critic(made.detach())[-1], critic(real)[-1]
    return (F.mse_loss(of_made, torch.zeros_like(of_made)) + F.mse_loss(of_real, torch.ones_like(of_real))) / 2
