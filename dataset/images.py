"""Reading images and masks as stored (PNG, TIFF, JPEG, NIfTI; 8 and 16 bit), and writing them without loss.

Pixels stay in the dtype of the file: alpha is dropped, palettes are expanded, nothing is stretched or rounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import atomic_path
from common.volumes import channels_of, read_itk

VOLUME_ENDINGS = (".nii.gz", ".nii")
ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", *VOLUME_ENDINGS)
_LOSSY = (".jpg", ".jpeg")
_PLAIN_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


@dataclass(frozen=True)
class Image:
    """``array``: (C, H, W), or (C, Z, H, W) where ``is_volume``; ``spacing_mm`` in array order (1, 1 for 2D files)."""

    array: np.ndarray
    spacing_mm: tuple[float, ...]
    is_volume: bool

    @property
    def shape_px(self) -> tuple[int, ...]:
        """Size without the channel axis."""
        return self.array.shape[1:]


def file_ending(path: Path) -> str:
    """The ending in lower case, ``.nii.gz`` in one piece.

    Raises:
        InputError: a format that is not read here.
    """
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return ending
    raise InputError(
        f"format {path.suffix!r} is not read", where=path, fix=f"convert it to one of {', '.join(ENDINGS)}"
    )


def stem(path: Path) -> str:
    """The file name without its ending."""
    return path.name[: -len(file_ending(path))]


def safe_name(text: str) -> str:
    """Letters, digits, ``_`` and ``-``: what else the text has becomes ``-`` (it may become empty)."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")


def size_text(shape: tuple[int, ...]) -> str:
    """A size for a message, as ``12 x 9``."""
    return " x ".join(str(length) for length in shape)


def read_image(path: Path) -> Image:
    """Read one image; volumes in nnU-Net's axis order (z, y, x).

    Raises:
        InputError: missing, unreadable, truncated, of an unsupported kind, constant, or with NaN or infinite values.
    """
    image = _read_volume(path) if file_ending(path) in VOLUME_ENDINGS else _read_flat(path)
    if image.array.min() == image.array.max():
        raise InputError(
            f"constant image: every pixel is {image.array.flat[0]}",
            where=path,
            fix="remove its row from the table, or export the image again",
        )
    return image


def read_mask(path: Path, mask_values: Mapping[int, int] | None, labels: Mapping[str, int]) -> np.ndarray:
    """Read a mask as label ids, uint8, (H, W) or (Z, H, W).

    Without ``mask_values`` a single label may be stored as 0/255, else the values are the ids. Pixels of a JPEG mask,
    which compression has blurred, take the nearest listed value.

    Raises:
        InputError: unreadable, more than one channel, or values outside the map.
    """
    ending = file_ending(path)
    values = _mask_array(path, ending)
    lossy = ending in _LOSSY
    mapping = dict(mask_values) if mask_values is not None else _default_mask_values(values, labels, lossy)
    present = np.unique(values)
    known = np.array(sorted(mapping))
    nearest = known[np.argmin(np.abs(present[:, None].astype(float) - known[None]), axis=1)]
    outside = present[present != nearest]
    if outside.size and not lossy:
        n_outside = int(np.isin(values, outside).sum())
        raise InputError(
            f"mask values {outside[:8].tolist()}{' ...' if outside.size > 8 else ''} ({n_outside} pixels) "
            f"are not in the map of pixel value to label id {mapping}",
            where=path,
            fix="list them in mask_values (pixel value: label id, 0 is background), or correct the mask",
        )
    ids = np.array([mapping[int(value)] for value in nearest], np.uint8)
    return ids[np.searchsorted(present, values)]


def check_label_ids(ids: Iterable[int], *, where: str | Path, fix: str) -> None:
    """Refuse label ids that nnU-Net cannot train on.

    Raises:
        InputError: ids other than 1..n.
    """
    in_order = sorted(ids)
    if not in_order or in_order != list(range(1, len(in_order) + 1)):
        raise InputError(f"the label ids {in_order} are not 1, 2, ...", where=where, fix=fix)


def area_weights(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) weights by which each output pixel averages the input pixels it covers; rows sum to 1."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    pixels = np.arange(n_in)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def area_resize(array: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Area-average the last two axes down to ``size_px``; floats stay floats, integers are rounded, dtype is kept."""
    rows, columns = area_weights(array.shape[-2], size_px[0]), area_weights(array.shape[-1], size_px[1])
    resized = rows @ array.astype(np.float64) @ columns.T
    return (np.round(resized) if np.issubdtype(array.dtype, np.integer) else resized).astype(array.dtype)


def limit_size(image: np.ndarray, mask: np.ndarray, max_size_px: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Shrink image (C, H, W) and mask (H, W) together so that the longest side is at most ``max_size_px``.

    A pixel of the mask takes the label that covers most of it; a foreground label wins a tie with background.
    """
    height, width = mask.shape
    if max_size_px is None or max(height, width) <= max_size_px:
        return image, mask
    factor = max_size_px / max(height, width)
    size_px = (max(1, round(height * factor)), max(1, round(width * factor)))
    ids = [*(int(label) for label in np.unique(mask) if label), 0]
    shares = np.stack([area_resize((mask == label).astype(np.float64), size_px) for label in ids])
    winner = np.argmax(np.round(shares, 9), axis=0)  # rounded, so that half and half is a tie on every machine
    return area_resize(image, size_px), np.array(ids, np.uint8)[winner]


def write_array(path: Path, array: np.ndarray, like: Path | None = None) -> None:
    """Write pixels as the ending of ``path`` says, atomically.

    Args:
        path: ``.png`` for (H, W) uint8 or uint16 or (H, W, 3) uint8; ``.nii.gz`` (compressed) for (Z, H, W).
        like: the file whose spacing, origin and direction a volume has.
    """
    with atomic_path(path) as temporary:
        if like is not None and path.name.endswith(".nii.gz"):
            import SimpleITK

            spacing_mm, origin_mm, direction = _geometry(like)
            image = SimpleITK.GetImageFromArray(array)
            image.SetSpacing(spacing_mm.tolist())
            image.SetOrigin(origin_mm.tolist())
            image.SetDirection(direction.ravel().tolist())
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
        else:
            import PIL.Image

            PIL.Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG")


def check_fits(image: Image, mask: np.ndarray, image_file: Path, mask_file: Path) -> None:
    """Refuse a mask whose size or, for volumes, place in space is not that of its image.

    Raises:
        InputError: it is not.
    """
    if mask.shape != image.shape_px:
        raise InputError(
            f"the mask is {size_text(mask.shape)} but its image {image_file} is {size_text(image.shape_px)}",
            where=mask_file,
            fix="export image and mask at the same size, or leave both out",
        )
    if image.is_volume:
        check_same_geometry(image_file, mask_file)


def check_same_geometry(image: Path, mask: Path) -> None:
    """Refuse a mask volume that lies elsewhere in space than its image.

    Raises:
        InputError: spacing, origin or direction differ by more than rounding.
    """
    pairs = zip(("spacing", "origin", "direction"), _geometry(image), _geometry(mask), strict=True)
    for name, of_image, of_mask in pairs:
        if not np.allclose(of_image, of_mask, rtol=1e-3, atol=1e-3):
            raise InputError(
                f"the mask's {name} {of_mask.tolist()} is not that of its image {image}, {of_image.tolist()}",
                where=mask,
                fix="resample the mask to its image, or copy the image's header to it",
            )


def _geometry(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spacing (3,), origin (3,) and direction (3, 3) of a volume file in ITK's order x, y, z; 2D is one slice."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    n_axes = reader.GetDimension()
    spacing_mm, origin_mm, direction = np.ones(3), np.zeros(3), np.eye(3)
    kept = min(n_axes, 3)
    spacing_mm[:kept], origin_mm[:kept] = reader.GetSpacing()[:kept], reader.GetOrigin()[:kept]
    direction[:kept, :kept] = np.array(reader.GetDirection()).reshape(n_axes, n_axes)[:kept, :kept]
    return spacing_mm, origin_mm, direction


def _default_mask_values(values: np.ndarray, labels: Mapping[str, int], lossy: bool) -> dict[int, int]:
    stored_as_255 = lossy or (values.max(initial=0) == 255 and not np.any((values != 0) & (values != 255)))
    if len(labels) == 1 and stored_as_255:
        return {0: 0, 255: next(iter(labels.values()))}
    return {0: 0, **{label: label for label in labels.values()}}


def _mask_array(path: Path, ending: str) -> np.ndarray:
    """Integer values (H, W) or (Z, H, W); several equal channels (a grey mask saved as RGB) count as one."""
    is_volume = ending in VOLUME_ENDINGS
    stored = _read_volume(path).array if is_volume else _decode(path, ending, expand_colours=False)
    if np.any(stored != stored[:1]):
        raise InputError(
            f"the mask has {len(stored)} different channels",
            where=path,
            fix="save it as one channel of label ids (coloured masks: as a palette PNG)",
        )
    values = np.rint(stored[0]).astype(np.int64)
    if np.any(values != stored[0]):
        raise InputError(
            f"mask values such as {stored[0][values != stored[0]][0]} are no whole numbers",
            where=path,
            fix="save the mask as integers, resampled with nearest neighbour",
        )
    return values


def _check_finite(path: Path) -> None:
    """Look at the values in the file itself: ITK, and so nnU-Net, reads NaN and infinity as 0 and gives no warning."""
    import nibabel

    stored = nibabel.load(path)
    assert isinstance(stored, nibabel.Nifti1Pair)
    if not np.issubdtype(stored.get_data_dtype(), np.floating):
        return
    broken = ~np.isfinite(np.asanyarray(stored.dataobj).T)
    if broken.any():
        position = tuple(int(index) for index in np.argwhere(broken)[0][-3:])
        raise InputError(
            f"it holds {int(broken.sum())} NaN or infinite voxels, the first at {position} (slice, row, column)",
            where=path,
            fix="export the volume again, or replace them with the background value",
        )


def _read_flat(path: Path) -> Image:
    array = _decode(path, file_ending(path), expand_colours=True)
    if array.dtype not in _PLAIN_DTYPES:
        raise InputError(
            f"a 2D image has {array.dtype} pixels",
            where=path,
            fix="save it as 8 or 16 bit unsigned integers, or as NIfTI if the values are physical",
        )
    return Image(array, (1.0, 1.0), is_volume=False)


def _read_volume(path: Path) -> Image:
    _check_exists(path)
    stored = read_itk(path, "it is not a readable volume", "copy or export it again, with orthonormal axes")
    _check_finite(path)
    array = channels_of(stored)
    spacing_mm = tuple(float(step) for step in stored.GetSpacing()[::-1])[-3:]  # without that of a channel axis
    if array.ndim == 3:  # one slice: the through-plane spacing that nnU-Net gives it
        array, spacing_mm = array[:, None], (max(spacing_mm) * 999, *spacing_mm)
    if array.ndim != 4:
        raise InputError(
            f"it has {array.ndim - 1} axes", where=path, fix="store one 3D volume (or 4D, channels last) a file"
        )
    return Image(array, spacing_mm, is_volume=True)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise InputError("there is no such file", where=path, fix="correct the table or the folder's name")


def _decode(path: Path, ending: str, *, expand_colours: bool) -> np.ndarray:
    """Pixels as (C, H, W), alpha dropped; colour palettes become RGB or, for masks, stay indices."""
    _check_exists(path)
    decoder: Callable[[Path, bool], np.ndarray] = _decode_tiff if ending in (".tif", ".tiff") else _decode_pillow
    try:
        pixels = decoder(path, expand_colours)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise InputError(
            f"it is not a readable image ({type(error).__name__}: {error})",
            where=path,
            fix="the file is truncated or damaged: copy or export it again",
        ) from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] > 4:
        raise InputError(
            f"an array of shape {pixels.shape} is no grey or RGB image", where=path, fix="store one 2D image a file"
        )
    n_channels = 1 if pixels.shape[-1] <= 2 else 3  # the second of two, the fourth of four is alpha
    return np.ascontiguousarray(np.moveaxis(pixels[..., :n_channels], -1, 0))


def _decode_pillow(path: Path, expand_colours: bool) -> np.ndarray:
    import imagecodecs
    import PIL.Image

    with PIL.Image.open(path) as stored:
        stored.load()  # the whole file: a truncated one is found here
        if stored.format == "PNG":
            with path.open("rb") as stream:
                depth = stream.read(25)[24]  # in IHDR: signature 8, length 4, type 4, width 4, height 4, depth 1
            if depth == 16:  # Pillow would cut colour of 16 bit down to 8
                return np.asarray(imagecodecs.png_decode(path.read_bytes()))
        if stored.mode == "P":  # a grey palette gives its greys; a coloured one its colours or, for a mask, the indices
            indices, colours = np.asarray(stored), np.asarray(stored.convert("RGB"))
            palette = np.array(stored.getpalette("RGB"), np.uint8).reshape(-1, 3)[np.unique(indices)]
            if np.all(palette == palette[:, :1]):
                return colours[..., 0]
            return colours if expand_colours else indices
        if stored.mode == "1":
            return np.asarray(stored.convert("L"))
        return np.asarray(stored if stored.mode in ("L", "LA", "RGB", "RGBA") else stored.convert("RGB"))


def _decode_tiff(path: Path, expand_colours: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        if len(file.pages) > 1 and file.series[0].size > page.size:
            raise InputError(
                f"the TIFF has {len(file.pages)} pages",
                where=path,
                fix="store one 2D image a file, or the stack as NIfTI",
            )
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            return _decode_pillow(path, expand_colours)
        pixels = page.asarray()
        if page.axes.startswith("S"):  # planes stored one after the other
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels
