"""What one image costs the networks, counted on the meta device: there tensors have shapes and no values."""

from __future__ import annotations

from functools import lru_cache

import torch
from monai.networks.blocks import SABlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion.autoencoder import Autoencoder, latent_size
from diffusion.denoiser import Denoiser
from diffusion.settings import AutoencoderSettings, DenoiserSettings, Size

META = "meta"


def meta_denoiser(settings: DenoiserSettings, size: Size, n_images: int = 1) -> tuple[Denoiser, tuple[Tensor, ...]]:
    """The network, and what its forward pass takes for ``n_images`` of ``size``; nothing is allocated."""
    with torch.device(META):
        network = Denoiser(settings)
        noisy, times = torch.zeros(n_images, settings.n_channels, *size), torch.zeros(n_images)
    return _without_flash(network), (noisy, times)


def meta_autoencoder(
    settings: AutoencoderSettings, image_size: Size, n_images: int = 1
) -> tuple[Autoencoder, tuple[Tensor, ...]]:
    """As ``meta_denoiser``, for images of ``image_size``."""
    with torch.device(META):
        network = Autoencoder(settings)
        images = torch.zeros(n_images, settings.n_channels, *image_size)
        noise = torch.zeros(n_images, settings.latent_channels, *latent_size(settings, image_size))
    return network, (images, noise)


def _without_flash(network: Denoiser) -> Denoiser:
    """Attention written out, on every machine: counted alike, and more memory than the fused one."""
    for module in network.modules():
        if isinstance(module, SABlock):
            module.use_flash_attention = False
    return network


@lru_cache(maxsize=256)
def denoiser_flop(settings: DenoiserSettings, size: Size) -> float:
    """Operations of one forward pass of one image; a multiplication and its addition are two."""
    return _flop(*meta_denoiser(settings, size))


@lru_cache(maxsize=256)
def autoencoder_flop(settings: AutoencoderSettings, image_size: Size) -> float:
    """The same for encoder and decoder together."""
    return _flop(*meta_autoencoder(settings, image_size))


def _flop(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops())
