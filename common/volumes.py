"""Files of volumes as ITK reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InputError

if TYPE_CHECKING:
    import SimpleITK


def read_itk(path: Path, problem: str, fix: str) -> SimpleITK.Image:
    """Read an image or a volume.

    Raises:
        InputError: ITK cannot read it; the message is ``problem`` with ITK's reason.
    """
    import SimpleITK

    try:
        return SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{problem} ({reason})", where=path, fix=fix) from error


def channels_of(image: SimpleITK.Image) -> np.ndarray:
    """(channels, Z, Y, X) or, of an image with two axes, (channels, Y, X)."""
    import SimpleITK

    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        return np.moveaxis(array, -1, 0)
    return array if array.ndim == 4 else array[None]  # a 4D file holds its channels along its last axis, array's first
