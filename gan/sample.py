"""Sample images: each one depends on its own seed alone, whatever the batch (D34)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.checkpoints import load_tensors
from common.progress import Progress, silent
from common.settings import from_dict
from gan.model import Generator
from gan.settings import GanSettings


def sample(
    checkpoint: Path,
    seeds: Sequence[int],
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> np.ndarray:
    """One image per seed, (n, channels, height, width), in the integer type of the training images.

    Latent and noise maps of an image come from its seed; no truncation.

    Raises:
        InputError: ``checkpoint`` is not a whole ``generator.safetensors``.
    """
    tensors, metadata = load_tensors(checkpoint)
    network = Generator(from_dict(GanSettings, metadata["settings"])).eval()
    network.load_state_dict(tensors)
    network.to(device)
    dtype = np.dtype(metadata["dtype"])
    images = np.empty((len(seeds), network.settings.n_channels, *network.settings.image_size_px), dtype)
    for start in range(0, len(seeds), batch_size):
        latents, noise = _draw(network, seeds[start : start + batch_size])
        with torch.inference_mode():
            batch = network(latents.to(device), [maps.to(device) for maps in noise])
        images[start : start + batch_size] = images_to_integers(batch.cpu(), dtype)
        progress(min(start + batch_size, len(seeds)), len(seeds), "images")
    return images


def images_to_integers(images: Tensor, dtype: np.dtype) -> np.ndarray:
    """[-1, 1] to the whole range of ``dtype``, rounded and clipped."""
    largest = float(np.iinfo(dtype).max)
    scaled = (images.double() + 1) * (largest / 2)
    return np.clip(np.round(scaled.numpy()), 0, largest).astype(dtype)


def _draw(network: Generator, seeds: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    latents, maps = [], []
    for seed in seeds:
        draws = torch.Generator().manual_seed(int(seed))
        latents.append(torch.randn(network.settings.config.z_dim, generator=draws))
        maps.append([torch.randn(1, *size, generator=draws) for size in network.noise_sizes()])
    return torch.stack(latents), [torch.stack(of_layer) for of_layer in zip(*maps, strict=True)]
