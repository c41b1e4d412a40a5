"""Pictures of what a generator makes: sheets of samples and a path between latents, from latents that never change."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import atomic_path
from common.seeds import derive_seed
from gan.draws import draw_noise
from gan.model import Generator

SHEET_SHAPE = (4, 8)  # rows, columns
PATHS = 4  # side by side in the interpolation
FRAMES = 16  # from one latent to the other; the picture plays them forth and back
FRAME_MS = 100
BATCH_SIZE = 8
SHEET = "sample_sheet.png"
SHEETS = "sheets"
INTERPOLATION = "interpolation.gif"


def write_pictures(network: Generator, seed: int, out: Path, kimg: float) -> None:
    """The newest sheet, its copy under ``sheets/`` for the length so far, and the interpolation."""
    draw_sheet(network, seed, out / SHEET)
    with atomic_path(out / SHEETS / sheet_name(kimg)) as temporary:
        temporary.write_bytes((out / SHEET).read_bytes())
    draw_interpolation(network, seed, out / INTERPOLATION)


def sheet_name(kimg: float) -> str:
    """File names sort by length: ``kimg_000004.800.png`` after 4,800 images."""
    return f"kimg_{kimg:010.3f}.png"


def kimg_of_sheet(path: Path) -> float:
    """The length ``sheet_name`` put into a file's name."""
    return float(path.stem.removeprefix("kimg_"))


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


@torch.no_grad()
def draw_interpolation(network: Generator, seed: int, path: Path) -> None:
    """Write an animation: each tile goes from one style w to another and back, its noise maps standing still.

    Where steps are even to the eye the generator's space is smooth; jumps between few pictures are a sign of copying.
    """
    from PIL import Image

    device = network.constant.device
    draws = torch.Generator().manual_seed(derive_seed(seed, "interpolation"))
    ends = network.mapping(torch.randn(2 * PATHS, network.settings.config.z_dim, generator=draws).to(device))
    noise = [maps.to(device) for maps in draw_noise(network, PATHS, draws)]
    frames = []
    for share in np.linspace(0, 1, FRAMES):
        styles = ends[:PATHS].lerp(ends[PATHS:], float(share))[:, None].expand(-1, network.n_styles, -1)
        tiles = images_to_integers(network.synthesise(styles, noise), np.dtype(np.uint8))
        frames.append(Image.fromarray(grid_of(tiles, (1, PATHS))))
    frames += frames[-2:0:-1]
    with atomic_path(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def images_to_integers(images: Tensor, dtype: np.dtype) -> np.ndarray:
    """[-1, 1] to the whole range of ``dtype`` (uint8 or uint16), rounded and clipped; computed where the images are."""
    largest = float(np.iinfo(dtype).max)
    scaled = ((images.double() + 1) * (largest / 2)).round_().clamp_(0, largest)
    return scaled.to(torch.uint8 if dtype == np.uint8 else torch.int32).cpu().numpy().astype(dtype, copy=False)


def write_grid(images: np.ndarray, shape: tuple[int, int], path: Path) -> None:
    """Write images (rows * columns, channels, h, w) as one PNG; see ``grid_of``."""
    from PIL import Image

    picture = grid_of(images, shape)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def grid_of(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(rows * columns, channels, h, w) -> (rows * h, columns * w), or with 3 channels (..., 3); else the first one."""
    rows, columns = shape
    shown = images if images.shape[1] == 3 else images[:, :1]
    height, width = shown.shape[-2:]
    grid = shown.reshape(rows, columns, -1, height, width).transpose(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * height, columns * width, -1)
    return picture if picture.shape[2] == 3 else picture[:, :, 0]


def as_sheet(images: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Any number of images as uint8, black ones added at the end so that they fill a grid: ``(images, shape)``."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    levels = images if images.dtype == np.uint8 else (images >> 8).astype(np.uint8)
    missing = np.zeros((rows * columns - len(images), *images.shape[1:]), np.uint8)
    return np.concatenate([levels, missing]), (rows, columns)
