"""Pictures of what a generator makes: a sheet of samples from latents that never change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.files import atomic_path
from common.seeds import derive_seed
from gan.draws import draw_noise
from gan.model import Generator
from gan.sample import images_to_integers

SHEET_SHAPE = (4, 8)  # rows, columns
BATCH_SIZE = 8


@torch.no_grad()
def draw_sheet(network: Generator, seed: int, path: Path) -> None:
    """Write a grid of samples as PNG; the same seed gives the same latents at every snapshot."""
    rows, columns = SHEET_SHAPE
    device = network.constant.device
    draws = torch.Generator().manual_seed(derive_seed(seed, "sheet"))
    latents = torch.randn(rows * columns, network.settings.config.z_dim, generator=draws)
    noise = draw_noise(network, rows * columns, draws)
    batches = zip(latents.split(BATCH_SIZE), *(maps.split(BATCH_SIZE) for maps in noise), strict=True)
    fakes = torch.cat([network(z.to(device), [m.to(device) for m in maps]).cpu() for z, *maps in batches])
    write_grid(images_to_integers(fakes, np.dtype(np.uint8)), SHEET_SHAPE, path)


def write_grid(images: np.ndarray, shape: tuple[int, int], path: Path) -> None:
    """Write uint8 images (rows * columns, channels, h, w) as one PNG; three channels as colours, else the first."""
    from PIL import Image

    rows, columns = shape
    shown = images if images.shape[1] == 3 else images[:, :1]
    height, width = shown.shape[-2:]
    grid = shown.reshape(rows, columns, -1, height, width).transpose(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * height, columns * width, -1).squeeze()
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
