"""Slices of the MNI152 brain as PNG files, a hard set of images for a filter.

    python -m dataset.mni_slices --wheel nilearn-0.11.1-py3-none-any.whl --out slices

The ICBM 152 non-linear 2009 T1 template comes with nilearn (``pip download --no-deps nilearn``). Slices along the three
axes through the middle 70 % of the volume: neighbours differ by what 4 mm of one brain differ by.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.command import command
from common.errors import InputError
from dataset.images import write_array

TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
FIRST, LAST = 0.15, 0.85  # of each axis
WHITE = 0.999  # quantile of the volume


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wheel", type=Path, required=True, help="nilearn-*.whl")
    parser.add_argument("--every-mm", type=int, default=4, help="distance of neighbouring slices")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Write the slices."""
    volume = read_template(chosen.wheel)
    slices = dict(slices_of(volume, chosen.every_mm))
    for name, image in slices.items():
        write_array(chosen.out / f"{name}.png", image)
    sys.stdout.write(f"{chosen.out}: {len(slices)} slices\n")


def read_template(wheel: Path) -> np.ndarray:
    """The volume (x, y, z) of 1 mm voxels, 0 to 255.

    Raises:
        InputError: no such wheel, or no template in it.
    """
    import nibabel

    if not wheel.is_file():
        raise InputError("there is no such file", where=wheel, fix="pip download --no-deps nilearn")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(TEMPLATE)]
        if not names:
            raise InputError(f"it holds no {TEMPLATE}", where=wheel, fix="give the wheel of nilearn")
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.read(names[0])))
    volume = image.get_fdata(dtype=np.float32)
    return np.rint(volume / np.quantile(volume, WHITE) * 255).clip(0, 255).astype(np.uint8)


def slices_of(volume: np.ndarray, every_mm: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and square images, black around what is not square."""
    for axis, n_slices in enumerate(volume.shape):
        for position in range(int(n_slices * FIRST), int(n_slices * LAST), every_mm):
            image = np.rot90(np.take(volume, position, axis))
            side = max(image.shape)
            margins = [((side - size) // 2, side - size - (side - size) // 2) for size in image.shape]
            yield f"{'xyz'[axis]}{position:03d}", np.pad(image, margins)


if __name__ == "__main__":
    sys.exit(main())
