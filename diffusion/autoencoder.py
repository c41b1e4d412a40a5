"""The autoencoder of a latent diffusion model, KL or VQ, on a plan's strides and kernels."""

from __future__ import annotations

import math

import torch
from monai.networks.nets.autoencoderkl import AEKLResBlock
from torch import Tensor, nn

from diffusion.blocks import NORM_EPS, Upsample, convolution, last_layers, maybe_checkpointed, n_groups
from diffusion.settings import AutoencoderSettings

LOG_VARIANCE_LIMITS = -30.0, 20.0
COMMITMENT = 0.25  # of VQ (van den Oord et al. 2017, equation 3)


class Autoencoder(nn.Module):
    """Images (b, channels, ...) to latents (b, latent channels, smaller ...) and back.

    KL: the latent has the distribution N(mean, variance) (Kingma and Welling 2014). VQ: the latent is the output of the
    encoder, and decoding takes the nearest entries of the codebook. The codebook is learned by gradients: with MONAI's
    moving average, which changes in every forward pass, the parts of a batch would not add up to the batch.
    """

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        n_latent = settings.latent_channels
        self.encoder = _Encoder(settings, 2 * n_latent if settings.kind == "kl" else n_latent)
        self.decoder = _Decoder(settings)
        if settings.kind == "vq":
            self.codebook = nn.Parameter(torch.empty(settings.codebook_size, n_latent))
            nn.init.uniform_(self.codebook, -1.0, 1.0)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents; for VQ the latter is the smallest there is."""
        moments = self.encoder(images)
        if self.settings.kind == "vq":
            return moments, torch.full_like(moments, LOG_VARIANCE_LIMITS[0])
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_LIMITS)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, without a bound."""
        if self.settings.kind == "vq":
            latents, _ = self.quantised(latents)
        made: Tensor = self.decoder(latents)
        return made

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions, and the term that keeps the latents in order, one number.

        It is the KL divergence to N(0, 1), or VQ's codebook and commitment terms (van den Oord et al. 2017, eq. 3).
        Both are means over latent values, so that their weights do not depend on the number of those.
        """
        mean, log_variance = self.moments(images)
        if self.settings.kind == "vq":
            latents, term = self.quantised(mean)
            return self.decoder(latents), term
        latents = mean + torch.exp(log_variance / 2) * noise
        divergence = (mean.square() + log_variance.exp() - log_variance - 1) / 2
        return self.decoder(latents), divergence.mean()

    def quantised(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codebook entries, with the gradient of ``latents``, and the terms that bring the two together."""
        flat = latents.movedim(1, -1).reshape(-1, latents.shape[1])
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codebook.T + self.codebook.square().sum(1)
        entries = self.codebook[distances.argmin(1)]
        entries = entries.reshape(*latents.movedim(1, -1).shape).movedim(-1, 1)
        term = (entries - latents.detach()).square().mean() + COMMITMENT * (entries.detach() - latents).square().mean()
        return latents + (entries - latents).detach(), term


class _Levels(nn.Module):
    """A convolution, levels of blocks, the last layers: the encoder and the decoder."""

    first: nn.Module
    levels: nn.ModuleList
    last: nn.Module
    checkpointing: bool

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for level in self.levels:
            x = maybe_checkpointed(level, self.checkpointing, x)
        made: Tensor = self.last(x)
        return made


class _Encoder(_Levels):
    def __init__(self, settings: AutoencoderSettings, n_out: int) -> None:
        super().__init__()
        widths, groups = settings.channels, n_groups(math.gcd(*settings.channels))
        n_axes, self.checkpointing = len(settings.first_kernel), settings.checkpointing
        self.first = convolution(settings.n_channels, widths[0], settings.first_kernel)
        self.levels = nn.ModuleList()
        n_before = widths[0]
        for level, width in enumerate(widths):
            blocks: list[nn.Module] = []
            for _ in range(settings.n_res_blocks):
                blocks.append(AEKLResBlock(n_axes, n_before, groups, NORM_EPS, width))
                n_before = width
            if level < len(settings.strides):
                blocks.append(convolution(width, width, settings.kernel_sizes[level], settings.strides[level]))
            self.levels.append(nn.Sequential(*blocks))
        self.last = last_layers(widths[-1], n_out, (3,) * n_axes, groups, is_zero=False)


class _Decoder(_Levels):
    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        widths, groups = settings.channels, n_groups(math.gcd(*settings.channels))
        n_axes, self.checkpointing = len(settings.first_kernel), settings.checkpointing
        self.first = convolution(settings.latent_channels, widths[-1], (3,) * n_axes)
        self.levels = nn.ModuleList()
        n_before = widths[-1]
        for level in reversed(range(len(widths))):
            blocks: list[nn.Module] = []
            for _ in range(settings.n_res_blocks):
                blocks.append(AEKLResBlock(n_axes, n_before, groups, NORM_EPS, widths[level]))
                n_before = widths[level]
            if level > 0:
                blocks.append(Upsample(n_before, settings.strides[level - 1], settings.kernel_sizes[level - 1]))
            self.levels.append(nn.Sequential(*blocks))
        self.last = last_layers(widths[0], settings.n_channels, settings.first_kernel, groups, is_zero=False)
