"""One sampled image as one file: PNG of its own bit depth, or NumPy's format where PNG has no such image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.files import atomic_path


def write_image(image: np.ndarray, folder: Path, seed: int) -> Path:
    """Write (channels, height, width), uint8 or uint16, named by its seed.

    One or three channels as ``.png``; others as ``.npy``, an array (channels, height, width).
    """
    suffix = "png" if len(image) in (1, 3) else "npy"
    path = folder / f"seed_{seed:08d}.{suffix}"
    with atomic_path(path) as temporary:
        if suffix == "png":
            _write_png(image, temporary)
        else:
            with temporary.open("wb") as stream:
                np.save(stream, image)
    return path


def _write_png(image: np.ndarray, path: Path) -> None:
    import imagecodecs  # Pillow writes no 16-bit colour

    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
