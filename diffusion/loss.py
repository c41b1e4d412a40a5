"""What the networks are trained to make small.

Denoiser: the mean squared error of what it says. Autoencoder (Rombach et al. 2022, appendix G): L1, a perceptual and an
adversarial term, and what keeps latents in order (``Autoencoder.forward``).
"""

from __future__ import annotations

import math

from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from diffusion.noise_schedule import NoiseSchedule
from diffusion.settings import Size

SMALLEST_JUDGED = 8  # voxels along an axis below which patches are no patches
MOST_JUDGE_LAYERS = 3


def denoising_errors(
    noise_schedule: NoiseSchedule, prediction: Tensor, clean: Tensor, noise: Tensor, times: Tensor
) -> Tensor:
    """(b,) mean squared error of each, against ``NoiseSchedule.target``."""
    return (prediction.float() - noise_schedule.target(clean, noise, times)).square().flatten(1).mean(1)


def build_discriminator(n_channels: int, size: Size, base_channels: int) -> nn.Module | None:
    """A critic of patches for images of ``size``; None where an axis is too short for patches.

    Instance norm: a batch norm's statistics would differ between a batch and its parts.
    """
    shortest = min(size)
    if shortest < SMALLEST_JUDGED:
        return None
    n_layers = max(1, min(MOST_JUDGE_LAYERS, int(math.log2(shortest / SMALLEST_JUDGED))))
    made: nn.Module = PatchDiscriminator(len(size), base_channels, n_channels, num_layers_d=n_layers, norm="INSTANCE")
    return made


class AdversarialLoss:
    """Least squares on the critic's last layer (Mao et al. 2017); the critic's own loss carries no weight."""

    def __init__(self) -> None:
        self._least_squares = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)

    def of_generator(self, critic: nn.Module, made: Tensor) -> Tensor:
        """Small where the critic takes ``made`` for real."""
        loss: Tensor = self._least_squares(critic(made)[-1], target_is_real=True, for_discriminator=False)
        return loss

    def of_critic(self, critic: nn.Module, made: Tensor, real: Tensor) -> Tensor:
        """Small where the critic tells the two apart."""
        of_made: Tensor = self._least_squares(critic(made.detach())[-1], target_is_real=False, for_discriminator=True)
        of_real: Tensor = self._least_squares(critic(real)[-1], target_is_real=True, for_discriminator=True)
        return (of_made + of_real) / 2
