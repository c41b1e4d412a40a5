"""What importers share: they look for folders, read grey levels, and write a case's image and mask.

Images are decoded and written anew, so that no text, EXIF or header field of a download travels with the pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import atomic_path, sha256_of_file
from dataset.images import (
    VOLUME_ENDINGS,
    Image,
    check_fits,
    check_same_geometry,
    file_ending,
    read_image,
    read_mask,
    size_text,
    write_array,
)

_SEARCH_DEPTH = 4
_EVERY_GREY = {level: level for level in range(256)}
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
SITE_SEED = 42  # of the original's assignments


def find_folders(raw: Path, fits: Callable[[Path], bool]) -> list[Path]:
    """Folders at or below ``raw`` (at most four levels) that ``fits`` accepts, shallowest first, then by name."""
    found, level = [], [raw]
    for _ in range(_SEARCH_DEPTH + 1):
        found += [folder for folder in level if fits(folder)]
        level = sorted(child for folder in level for child in folder.iterdir() if _is_visible_folder(child))
    return found


def holds(*patterns: str) -> Callable[[Path], bool]:
    """Whether a folder has something for each of the patterns of ``Path.glob``."""
    return lambda folder: all(any(folder.glob(pattern)) for pattern in patterns)


def the_folder(raw: Path, fits: Callable[[Path], bool], looked_for: str) -> Path:
    """The one folder that ``fits``; ``looked_for`` says what it contains.

    Raises:
        InputError: none or several.
    """
    found = find_folders(raw, fits)
    if len(found) != 1:
        several = "".join(f"\n  - {folder}" for folder in found)
        raise InputError(
            f"{len(found)} folders contain {looked_for}{several}",
            where=raw,
            fix=f"give the unpacked download as --raw, with one folder that contains {looked_for}",
        )
    return found[0]


def grey_levels(path: Path) -> np.ndarray:
    """The grey levels of an 8-bit mask, uint8 (H, W), or (Z, H, W) of a volume; equal colour channels count as one.

    Raises:
        InputError: unreadable, different channels, or values above 255.
    """
    return read_mask(path, _EVERY_GREY, {})


def binary_mask(path: Path, threshold: int | None) -> np.ndarray:
    """A mask as 0 and 1, uint8 (H, W): grey levels of at least ``threshold``, or, without one, exactly 0 and 255.

    Raises:
        InputError: grey levels in between and no threshold.
    """
    levels = grey_levels(path)
    if threshold is not None:
        return (levels >= threshold).astype(np.uint8)
    between = np.unique(levels[(levels != 0) & (levels != 255)])
    if between.size:
        n_between = int(np.isin(levels, between).sum())
        raise InputError(
            f"{n_between} pixels of the mask are neither 0 nor 255 but grey, for example {between[:8].tolist()}",
            where=path,
            fix="export the mask again without smoothing or compression, or accept it with mask_threshold=128",
        )
    return (levels == 255).astype(np.uint8)


def nearest_label(path: Path, mask_values: Mapping[int, int], tolerance: int) -> np.ndarray:
    """Label ids, uint8: each grey level takes the nearest value of ``mask_values``, at most ``tolerance`` away.

    Raises:
        InputError: a grey level farther from all of them.
    """
    levels = grey_levels(path)
    known = np.array(sorted(mask_values))
    nearest = known[np.argmin(np.abs(np.arange(256)[:, None] - known[None]), axis=1)]
    present = np.unique(levels)
    far = present[np.abs(present.astype(int) - nearest[present]) > tolerance]
    if far.size:
        raise InputError(
            f"mask values {far[:8].tolist()} are more than {tolerance} from all of {known.tolist()}",
            where=path,
            fix="list them in mask_values (value:label id, 0 is background), or raise mask_tolerance",
        )
    return np.array([mask_values[int(value)] for value in nearest], np.uint8)[levels]


def in_colours(image: Image, n_channels: int) -> Image:
    """A 2D image as one grey channel (luminance) or as three equal ones; its dtype stays."""
    pixels = image.array
    if len(pixels) == n_channels:
        return image
    if n_channels == 3:
        pixels = np.repeat(pixels, 3, axis=0)
    elif np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2]):
        pixels = pixels[:1]
    else:
        pixels = np.rint(np.tensordot(_LUMINANCE, pixels, 1))[None].astype(pixels.dtype)
    return replace(image, array=pixels)


def write_image(path_of_stem: Path, image: Image, like: Path) -> None:
    """Write an image as ``<stem>.png`` (16-bit colour: ``.tif``; volumes: ``.nii.gz`` with the geometry of ``like``).

    Raises:
        InputError: a 2D image that is neither grey nor RGB.
    """
    folder, name, pixels = path_of_stem.parent, path_of_stem.name, image.array
    if image.is_volume:
        _write_channels(folder / f"{name}.nii.gz", pixels, like)
    elif len(pixels) == 1:
        write_array(folder / f"{name}.png", pixels[0])
    elif len(pixels) != 3:
        raise InputError(
            f"a 2D image has {len(pixels)} channels", where=like, fix="keep one channel or three, or use volumes"
        )
    elif pixels.dtype == np.uint16:
        import tifffile

        with atomic_path(folder / f"{name}.tif") as temporary:
            tifffile.imwrite(
                temporary, np.moveaxis(pixels, 0, -1), photometric="rgb", metadata=None, compression="zlib"
            )
    else:
        write_array(folder / f"{name}.png", np.moveaxis(pixels, 0, -1))


def write_pair(name: str, out: Path, image: Image, mask: np.ndarray, image_file: Path, mask_file: Path) -> None:
    """Write ``out/images/<name>`` and ``out/masks/<name>`` (label ids), after a look at their sizes and geometry.

    Raises:
        InputError: the mask's size, or a volume's place in space, is not that of its image.
    """
    check_fits(image, mask, image_file, mask_file)
    write_image(out / "images" / name, image, image_file)
    write_image(out / "masks" / name, Image(mask[None], image.spacing_mm, image.is_volume), image_file)


def read_channels(files: Sequence[Path]) -> Image:
    """One image from a file, or from several files of one channel or more each.

    Raises:
        InputError: unreadable files, or files of different size, kind, bit depth or geometry.
    """
    images = [read_image(file) for file in files]
    first = images[0]
    for file, image in zip(files[1:], images[1:], strict=True):
        kinds = [(part.is_volume, part.array.dtype, part.shape_px) for part in (first, image)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"this channel is {image.array.dtype}, {size_text(image.shape_px)}, "
                f"the first one {first.array.dtype}, {size_text(first.shape_px)}",
                where=file,
                fix="export all channels of a case with one size and bit depth",
            )
        if file_ending(file) in VOLUME_ENDINGS:
            check_same_geometry(files[0], file)
    return Image(np.concatenate([image.array for image in images]), first.spacing_mm, first.is_volume)


def deal_to_sites(patients: Iterable[str], n_sites: int) -> dict[str, str]:
    """Site of each patient, as the original deals them (HyFree-S3, data scripts): any number of sites.

    Ids, sorted (as numbers where all are numbers), are shuffled with ``numpy.random.default_rng(42)``; site j of n gets
    elements j, j + n, ... Sites are A, B, ..., Z, then S27, S28, ...
    """
    unique = set(patients)
    numeric = all(patient.isdecimal() for patient in unique)
    order = sorted(unique, key=lambda patient: (int(patient) if numeric else 0, patient))
    np.random.default_rng(SITE_SEED).shuffle(order)
    return {patient: site_name(index % n_sites) for index, patient in enumerate(order)}


def site_name(index: int) -> str:
    """A, B, ..., Z, S27, S28, ..."""
    return chr(ord("A") + index) if index < 26 else f"S{index + 1}"


def equal_files(files: Iterable[Path]) -> list[list[Path]]:
    """Groups of two or more files of equal bytes, in the order given; only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        by_size[file.stat().st_size].append(file)
    by_content: dict[str, list[Path]] = defaultdict(list)
    for group in by_size.values():
        for file in group if len(group) > 1 else ():
            by_content[sha256_of_file(file)].append(file)
    return [group for group in by_content.values() if len(group) > 1]


def _is_visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__MACOSX"))


def _write_channels(path: Path, channels: np.ndarray, like: Path) -> None:
    """(C, Z, H, W) as one NIfTI; several channels as its fourth axis, as MSD does."""
    import SimpleITK

    if len(channels) == 1:
        write_array(path, channels[0], like=like)
        return
    with atomic_path(path) as temporary:
        parts = []
        for volume in channels:
            write_array(temporary, volume, like=like)
            parts.append(SimpleITK.ReadImage(str(temporary)))
        SimpleITK.WriteImage(SimpleITK.JoinSeries(parts), str(temporary), useCompression=True)
