"""Images of styles that sampling does not draw: pulled towards the mean style, or between two of them.

A generator that has learned its training images by heart makes near-copies of them there: paler ones, and blends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gan.batch_sampler import BatchSampler
from gan.sample import Opened, open_generator
from training.pictures import images_to_integers

N_FOR_THE_MEAN = 1000
BATCH_SIZE = 8


@torch.inference_mode()
def sample_truncated(checkpoint: Path, seeds: Sequence[int], share: float, device: str = "cpu") -> np.ndarray:
    """One image per seed, its style at this share of the way from the mean style to its own; (n, channels, h, w).

    Raises:
        InputError: ``checkpoint`` holds no generator.
    """
    opened = open_generator(checkpoint, device)
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(N_FOR_THE_MEAN, opened.network.settings.config.z_dim, generator=draws)
    mean = opened.network.mapping(latents.to(device)).mean(dim=0)
    styles, noise = _drawn(opened, seeds)
    return _synthesise(opened, mean.lerp(styles, share), noise)


@torch.inference_mode()
def sample_between(checkpoint: Path, seeds: Sequence[int], share: float, device: str = "cpu") -> np.ndarray:
    """One image per seed, its style at this share of the way from the seed's style to that of the next seed.

    The seed after the last one is the first. Noise is the seed's own.

    Raises:
        InputError: ``checkpoint`` holds no generator.
    """
    opened = open_generator(checkpoint, device)
    styles, noise = _drawn(opened, seeds)
    return _synthesise(opened, styles.lerp(styles.roll(-1, dims=0), share), noise)


def _drawn(opened: Opened, seeds: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Styles (n, w_dim) and noise maps of the seeds: the numbers that sampling draws for them."""
    sampler = BatchSampler(opened.network, opened.dtype, len(seeds))
    latents, noise = sampler.parts(sampler.draw(seeds))
    return opened.network.mapping(latents), noise


def _synthesise(opened: Opened, styles: Tensor, noise: Sequence[Tensor]) -> np.ndarray:
    network = opened.network
    parts = zip(styles.split(BATCH_SIZE), *(maps.split(BATCH_SIZE) for maps in noise), strict=True)
    images = [network.synthesise(w[:, None].expand(-1, network.n_styles, -1), maps) for w, *maps in parts]
    return images_to_integers(torch.cat(images), opened.dtype)
