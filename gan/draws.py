"""The random numbers of a batch: for all its images, so that they do not depend on the number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

from gan.model import GeneratorNetwork


def on_device(draws: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator of large tensors that follows from ``draws``: itself on the CPU, else one on ``device``.

    Noise maps and projections are nearly all numbers of a step; drawn on the CPU they would take longer than a GPU
    takes for the step.
    """
    if device.type == "cpu":
        return draws
    seed = int(torch.randint(2**62, (), generator=draws, device=draws.device))
    return torch.Generator(device).manual_seed(seed)


def draw_noise(network: GeneratorNetwork, n_images: int, generator: torch.Generator) -> list[Tensor]:
    """Fresh N(0, 1) noise maps, one (n_images, 1, h, w) a layer, on the generator's device."""
    sizes, device = network.noise_sizes(), generator.device
    return [torch.randn(n_images, 1, *size, generator=generator, device=device) for size in sizes]


def draw_latents(network: GeneratorNetwork, n_images: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Latents (2, n_images, z_dim) and the layer from which on the second one's style is used.

    With the style-mixing probability that layer is drawn, one for the batch; else it is ``n_styles``, that is none.
    """
    config = network.settings.config
    latents = torch.randn(2, n_images, config.z_dim, generator=generator)
    is_mixed = float(torch.rand((), generator=generator)) < config.style_mixing
    cutoff = int(torch.randint(1, network.n_styles, (), generator=generator)) if is_mixed else network.n_styles
    return latents, cutoff
