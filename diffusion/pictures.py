"""Pictures of a training: samples and reconstructions, as PNG for images and as moving GIF for volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import atomic_path
from training.pictures import SHEET, SHEETS, grid_of, images_to_integers, sheet_name, write_animation, write_grid

N_COLUMNS = 4
FRAME_MS = 120  # of a volume's slice
RECONSTRUCTIONS = "reconstructions"
MAX_SHOWN = 4  # pairs of crop and reconstruction


def write_samples(out: Path, samples: Tensor, n_image_channels: int, kimg: float) -> None:
    """The newest sheet of ``samples`` (n, channels, *size), and a copy under ``sheets/`` for the length so far.

    Images: one PNG, every channel below the other unless there are three. Volumes: a GIF that goes through the slices.
    """
    shown = samples[: len(samples) // N_COLUMNS * N_COLUMNS] if len(samples) >= N_COLUMNS else samples
    _write(shown[:, :n_image_channels], min(N_COLUMNS, len(shown)), out, SHEET, kimg)


def write_reconstructions(out: Path, crops: Tensor, made: Tensor, kimg: float) -> None:
    """Crops in the upper row, their reconstructions below."""
    n_shown = min(MAX_SHOWN, len(crops))
    _write(torch.cat([crops[:n_shown], made[:n_shown]]), n_shown, out, RECONSTRUCTIONS, kimg)


def _write(images: Tensor, n_columns: int, out: Path, name: str, kimg: float) -> None:
    """The newest picture, and a copy under ``sheets/`` for the length so far."""
    suffix = ".png" if images.ndim == 4 else ".gif"
    path = (out / name).with_suffix(suffix)
    _draw(images, n_columns, path)
    with atomic_path((out / SHEETS / sheet_name(kimg)).with_suffix(suffix)) as temporary:
        temporary.write_bytes(path.read_bytes())


def _draw(images: Tensor, n_columns: int, path: Path) -> None:
    integers = images_to_integers(images, np.dtype(np.uint8))
    if integers.ndim == 4:
        tiles = _channels_as_rows(integers, n_columns)
        write_grid(tiles, (len(tiles) // n_columns, n_columns), path)
        return
    frames = []
    for index in range(integers.shape[2]):
        tiles = _channels_as_rows(integers[:, :, index], n_columns)
        frames.append(grid_of(tiles, (len(tiles) // n_columns, n_columns)))
    write_animation(frames, path, FRAME_MS)


def _channels_as_rows(tiles: np.ndarray, n_columns: int) -> np.ndarray:
    """(rows * columns, channels, h, w): three channels stay together; of others each has a row of its own."""
    n_channels = tiles.shape[1]
    if n_channels in (1, 3):
        return tiles
    apart = tiles.reshape(-1, n_columns, n_channels, 1, *tiles.shape[2:]).swapaxes(1, 2)
    return apart.reshape(-1, 1, *tiles.shape[2:])
