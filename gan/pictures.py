"""What a generator makes of latents that never change: sheets, a path between latents, samples for the monitor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.files import atomic_path
from common.seeds import derive_seed
from gan.model import GeneratorNetwork
from training.pictures import (
    SHEET,
    SHEET_SHAPE,
    SHEETS,
    grid_of,
    images_to_integers,
    sheet_name,
    write_animation,
    write_grid,
)

PATHS = 4  # side by side in the interpolation
FRAMES = 16  # from one latent to the other; the picture plays them forth and back
FRAME_MS = 100
BATCH_SIZE = 8
COMPARED_AT_ONCE = 16  # the monitor's samples follow from it
INTERPOLATION = "interpolation.gif"


def write_pictures(network: GeneratorNetwork, seed: int, out: Path, kimg: float) -> None:
    """The newest sheet, its copy under ``sheets/`` for the length so far, and the interpolation."""
    draw_sheet(network, seed, out / SHEET)
    with atomic_path(out / SHEETS / sheet_name(kimg)) as temporary:
        temporary.write_bytes((out / SHEET).read_bytes())
    draw_interpolation(network, seed, out / INTERPOLATION)


@torch.no_grad()
def draw_sheet(network: GeneratorNetwork, seed: int, path: Path) -> None:
    """Write a grid of samples as PNG; the same seed gives the same latents at every snapshot."""
    rows, columns = SHEET_SHAPE
    device = network.constant.device
    draws = torch.Generator().manual_seed(derive_seed(seed, "sheet"))
    latents = torch.randn(rows * columns, network.settings.config.z_dim, generator=draws)
    noise = network.draw_noise(rows * columns, draws)
    batches = zip(latents.split(BATCH_SIZE), *(maps.split(BATCH_SIZE) for maps in noise), strict=True)
    fakes = torch.cat([network(z.to(device), [m.to(device) for m in maps]).cpu() for z, *maps in batches])
    write_grid(images_to_integers(fakes, np.dtype(np.uint8)), SHEET_SHAPE, path)


@torch.no_grad()
def draw_interpolation(network: GeneratorNetwork, seed: int, path: Path) -> None:
    """Write an animation: each tile goes from one style w to another and back, its noise maps standing still.

    Where steps are even to the eye the generator's space is smooth; jumps between few pictures are a sign of copying.
    """
    device = network.constant.device
    draws = torch.Generator().manual_seed(derive_seed(seed, "interpolation"))
    ends = network.mapping(torch.randn(2 * PATHS, network.settings.config.z_dim, generator=draws).to(device))
    noise = [maps.to(device) for maps in network.draw_noise(PATHS, draws)]
    frames = []
    for share in np.linspace(0, 1, FRAMES):
        styles = ends[:PATHS].lerp(ends[PATHS:], float(share))[:, None].expand(-1, network.n_styles, -1)
        tiles = images_to_integers(network.synthesise(styles, noise), np.dtype(np.uint8))
        frames.append(grid_of(tiles, (1, PATHS)))
    write_animation([*frames, *frames[-2:0:-1]], path, FRAME_MS)


@torch.no_grad()
def draw_fixed_samples(network: GeneratorNetwork, seed: int, n_samples: int, dtype: np.dtype) -> np.ndarray:
    """(n_samples, channels, height, width) integers from latents and noise that are the same at every snapshot."""
    device = network.constant.device
    blocks = []
    for start in range(0, n_samples, COMPARED_AT_ONCE):
        n_images = min(COMPARED_AT_ONCE, n_samples - start)
        draws = torch.Generator().manual_seed(derive_seed(seed, "fixed samples", start))
        latents = torch.randn(n_images, network.settings.config.z_dim, generator=draws).to(device)
        noise = [maps.to(device) for maps in network.draw_noise(n_images, draws)]
        blocks.append(images_to_integers(network(latents, noise).cpu(), dtype))
    return np.concatenate(blocks)
