"""A diffusion model ready to sample: the averaged denoiser, the decoder where there is one, and the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoints import load_tensors
from common.errors import InputError
from common.machine import checked_device
from common.settings import from_dict
from diffusion.autoencoder import Autoencoder
from diffusion.denoiser import Denoiser
from diffusion.noise_schedule import NoiseSchedule
from diffusion.settings import DiffusionSettings
from training.training_state import GIVE_RESULT, check_checkpoint_exists


class Model(nn.Module):
    """``denoiser`` and, for latents, ``autoencoder`` with the latents' mean and deviation."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.noise_schedule = NoiseSchedule(
            settings.config.schedule, settings.config.prediction, settings.config.n_times
        )
        self.denoiser = Denoiser(settings.denoiser)
        if settings.autoencoder is not None:
            shape = (1, settings.autoencoder.latent_channels, *[1] * settings.n_axes)
            self.autoencoder = Autoencoder(settings.autoencoder)
            self.register_buffer("latent_mean", torch.zeros(shape))
            self.register_buffer("latent_std", torch.ones(shape))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one image: (channels, *size)."""
        return (self.settings.denoiser.n_channels, *self.settings.denoised_size)

    def images(self, denoised: Tensor) -> Tensor:
        """Images (b, data channels, *size), about [-1, 1], of the sampler's result (pixels or latents)."""
        if self.settings.autoencoder is None:
            return denoised
        return self.autoencoder.decode(denoised * self.latent_std + self.latent_mean)


@dataclass(frozen=True)
class Opened:
    """A model from a file, how its samples are written, and the length of its training."""

    model: Model
    output_spec: Mapping[str, Any]
    kimg: float


def open_model(checkpoint: Path, device: str = "cpu") -> Opened:
    """Read ``generator.safetensors``.

    Raises:
        InputError: the file is missing or holds no diffusion model of this version, or there is no such device.
    """
    check_checkpoint_exists(checkpoint)
    tensors, metadata = load_tensors(checkpoint)
    try:
        model = Model(from_dict(DiffusionSettings, metadata["settings"]))
        model.load_state_dict(tensors)
        opened = Opened(model.eval().requires_grad_(False), metadata["facts"], float(metadata["snapshot"]["kimg"]))
    except (KeyError, TypeError, RuntimeError) as error:
        problem = f"this is not a diffusion model of this version ({str(error).splitlines()[0]})"
        raise InputError(problem, where=checkpoint, fix=GIVE_RESULT) from error
    in_fast_order(opened.model.to(checked_device(device)).denoiser)
    return opened


def in_fast_order(network: nn.Module) -> nn.Module:
    """On a CPU, channels last: a sixth to a third less time for these networks (measured)."""
    weight = next(parameter for parameter in network.parameters() if parameter.ndim > 3)
    if weight.device.type == "cpu":
        network.to(memory_format=torch.channels_last if weight.ndim == 4 else torch.channels_last_3d)
    return network
