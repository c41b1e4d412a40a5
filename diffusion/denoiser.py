"""The denoiser: a U-Net conditioned on the time, with a plan's strides and kernels (Ho et al. 2020).

It can also be conditioned on a class (one more class stands for none, for guidance: Ho and Salimans 2022), and on masks
or images of its own size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, get_timestep_embedding
from torch import Tensor, nn

from diffusion.blocks import (
    NORM_EPS,
    Upsample,
    attention,
    convolution,
    last_layers,
    maybe_checkpointed,
    n_groups,
)
from diffusion.settings import DenoiserSettings


class Denoiser(nn.Module):
    """``denoiser(noisy, times)`` in the shape of ``noisy`` (b, channels, ...); every axis divisible by its strides."""

    def __init__(self, settings: DenoiserSettings) -> None:
        super().__init__()
        self.settings = settings
        widths, n_axes = settings.channels, len(settings.first_kernel)
        groups, n_embedded = n_groups(math.gcd(*widths)), 4 * widths[0]
        self.embed_time = nn.Sequential(nn.Linear(widths[0], n_embedded), nn.SiLU(), nn.Linear(n_embedded, n_embedded))
        if settings.n_classes:
            self.embed_class = nn.Embedding(settings.n_classes + 1, n_embedded)
        n_in = settings.n_channels + settings.n_context_channels
        self.first = convolution(n_in, widths[0], settings.first_kernel)
        kept = [widths[0]]  # widths of the outputs that the way down keeps for the way up
        down: list[nn.ModuleList] = []
        smaller: list[nn.Module] = []
        n_before = widths[0]
        for level, width in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(settings.n_res_blocks):
                blocks.append(_Block(n_axes, n_before, width, n_embedded, groups, settings.attention[level]))
                n_before = width
                kept.append(width)
            down.append(blocks)
            if level < len(settings.strides):
                smaller.append(convolution(width, width, settings.kernel_sizes[level], settings.strides[level]))
                kept.append(width)
        self.down, self.smaller = nn.ModuleList(down), nn.ModuleList(smaller)
        self.middle = nn.ModuleList(
            _Block(n_axes, n_before, n_before, n_embedded, groups, settings.attention[-1] and i == 0) for i in range(2)
        )
        self.up, self.larger = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            blocks = nn.ModuleList()
            for _ in range(settings.n_res_blocks + 1):
                n_joined = n_before + kept.pop()
                blocks.append(_Block(n_axes, n_joined, widths[level], n_embedded, groups, settings.attention[level]))
                n_before = widths[level]
            self.up.append(blocks)
            if level > 0:
                self.larger.append(Upsample(n_before, settings.strides[level - 1], settings.kernel_sizes[level - 1]))
        self.last = last_layers(widths[0], settings.n_channels, settings.first_kernel, groups, is_zero=True)

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        classes: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise or v in ``noisy``.

        Args:
            times: (b,) from 0 to 1000, as ``NoiseSchedule.network_timesteps`` gives them.
            classes: (b,) whole numbers below ``n_classes``; None: no class.
            context: (b, ``n_context_channels``, ...) in the size of ``noisy``; None: zeros.
        """
        conditioning = self._conditioning(noisy, times, classes)
        is_checkpointed = self.settings.checkpointing
        if self.settings.n_context_channels:
            if context is None:
                context = noisy.new_zeros(len(noisy), self.settings.n_context_channels, *noisy.shape[2:])
            noisy = torch.cat([noisy, context], 1)
        x = self.first(noisy)
        kept = [x]
        for level in range(len(self.down)):
            for block in _blocks_of(self.down[level]):
                x = maybe_checkpointed(block, is_checkpointed, x, conditioning)
                kept.append(x)
            if level < len(self.smaller):
                x = self.smaller[level](x)
                kept.append(x)
        for block in self.middle:
            x = maybe_checkpointed(block, is_checkpointed, x, conditioning)
        for level in range(len(self.up)):
            for block in _blocks_of(self.up[level]):
                x = maybe_checkpointed(block, is_checkpointed, torch.cat([x, kept.pop()], 1), conditioning)
            if level < len(self.larger):
                x = self.larger[level](x)
        made: Tensor = self.last(x)
        return made

    def _conditioning(self, noisy: Tensor, times: Tensor, classes: Tensor | None) -> Tensor:
        """(b, n) of time and class together."""
        settings = self.settings
        conditioning: Tensor = self.embed_time(get_timestep_embedding(times, settings.channels[0]).to(noisy.dtype))
        if settings.n_classes:
            none = torch.full((len(noisy),), settings.n_classes, device=noisy.device)
            conditioning = conditioning + self.embed_class(none if classes is None else classes)
        return conditioning


def _blocks_of(level: nn.Module) -> Iterator[nn.Module]:
    assert isinstance(level, nn.ModuleList)
    return iter(level)


class _Block(nn.Module):
    """A residual block conditioned on the time, and attention where the level has it."""

    def __init__(self, n_axes: int, n_in: int, n_out: int, n_embedded: int, groups: int, has_attention: bool) -> None:
        super().__init__()
        self.residual = DiffusionUNetResnetBlock(n_axes, n_in, n_embedded, n_out, False, False, groups, NORM_EPS)
        self.attention = attention(n_axes, n_out, groups) if has_attention else nn.Identity()

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        made: Tensor = self.attention(self.residual(x, conditioning))
        return made
