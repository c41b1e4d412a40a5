"""The random numbers of a batch, drawn on the CPU so that every device and every number of processes sees the same."""

from __future__ import annotations

import torch
from torch import Tensor

from gan.model import Generator


def draw_noise(network: Generator, n_images: int, generator: torch.Generator) -> list[Tensor]:
    """Fresh N(0, 1) noise maps, one (n_images, 1, h, w) a layer."""
    return [torch.randn(n_images, 1, *size, generator=generator) for size in network.noise_sizes()]


def draw_latents(network: Generator, n_images: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Latents (2, n_images, z_dim) and the layer from which on the second one's style is used.

    With the style-mixing probability that layer is drawn, one for the batch; else it is ``n_styles``, that is none.
    """
    config = network.settings.config
    latents = torch.randn(2, n_images, config.z_dim, generator=generator)
    is_mixed = float(torch.rand((), generator=generator)) < config.style_mixing
    cutoff = int(torch.randint(1, network.n_styles, (), generator=generator)) if is_mixed else network.n_styles
    return latents, cutoff
