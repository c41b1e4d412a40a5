"""Samples as files: images as integers, single ones and grids of them, and the sheets of a training by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import atomic_path

SHEET_SHAPE = (4, 8)  # rows, columns
SHEET = "sample_sheet.png"
SHEETS = "sheets"


def sheet_name(kimg: float) -> str:
    """File names sort by length: ``kimg_000004.800.png`` after 4,800 images."""
    return f"kimg_{kimg:010.3f}.png"


def kimg_of_sheet(path: Path) -> float:
    """The length ``sheet_name`` put into a file's name."""
    return float(path.stem.removeprefix("kimg_"))


def remove_sheets_after(out: Path, kimg: float) -> None:
    """Delete the sheets of a future that a training resumed at ``kimg`` will draw again."""
    for sheet in (out / SHEETS).glob("kimg_*"):
        if kimg_of_sheet(sheet) > kimg:
            sheet.unlink()


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


def write_animation(frames: Sequence[np.ndarray], path: Path, frame_ms: int) -> None:
    """Write pictures as ``grid_of`` makes them as one GIF that is played again and again."""
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=frame_ms, loop=0)


def write_image(image: np.ndarray, folder: Path, seed: int) -> Path:
    """Write one image (channels, height, width), uint8 or uint16, named by its seed.

    One or three channels: ``.png`` of the image's own bit depth; others: ``.npy``, an array (channels, height, width).
    """
    is_png = len(image) in (1, 3)
    path = folder / f"seed_{seed:08d}.{'png' if is_png else 'npy'}"
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        if is_png:
            import imagecodecs  # Pillow writes no 16-bit colour

            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            stream.write(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
        else:
            np.save(stream, image)
    return path
