"""Slices for the generator: at the plan's patch size, one isotropic scale a site, at the source's bit depth.

Pure functions over arrays; every pair is (height, width). Intensities are stored as integers with the window that maps
them back (``common.image_set.Intensity``), so that generated pixels return to the units real ones are normalised in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from common.image_set import ImageEntry, ImageSet, ImageSetInfo, Intensity
from common.plan import Plan
from common.progress import Progress, silent
from dataset.images import area_resize

_VOXELS_A_CASE = 200_000  # for the site's percentiles: more would not move them
_WINDOW_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class SliceCase:
    """One case after nnU-Net's transposition and, for volumes, its cropping, resampling and normalisation."""

    case_id: str
    patient: str
    split: str  # "train" or "val" of the outer fold
    array: np.ndarray  # (C, Z, H, W): the stored integers of a 2D source, float32 of a volume
    through_plane_spacing_mm: float = 999.0  # of axis Z; nnU-Net's 999 for 2D files
    outside: np.ndarray | None = None  # (Z, H, W) bool: outside the non-zero mask the normalisation used


CaseSource = Iterable[SliceCase] | Callable[[], Iterable[SliceCase]]


def case_of_image(case_id: str, patient: str, split: str, image: np.ndarray) -> SliceCase:
    """A 2D image (C, H, W) cropped to its non-zero part, as nnU-Net's preprocessing crops it."""
    return SliceCase(case_id, patient, split, crop_to_nonzero(image)[:, None])


def build_slices(
    cases: CaseSource,
    plan: Plan,
    *,
    space: str = "source",
    volumetric: bool = False,
    min_slice_distance_mm: float = 4.0,
    progress: Progress = silent,
) -> ImageSet:
    """All slices of a site, at least ``min_slice_distance_mm`` apart, fitted to ``plan.patch_size_px``.

    ``cases`` is a sequence, or a callable that gives a fresh iterator: it is gone through twice (sizes and window, then
    pixels) and one case is held at a time. The window of each channel is 0..255 for uint8, the site's range for uint16
    and its 0.1 and 99.9 percentiles for floats. ``space`` is what the pixel values are in: ``source`` units or
    nnU-Net's ``normalised`` ones.

    Raises:
        ValueError: no cases, or cases of different channels or dtypes.
    """
    # first pass: the site's sizes and window
    survey = _survey(cases() if callable(cases) else cases, min_slice_distance_mm)
    intensity = Intensity(space, *survey.window())
    dtype = np.dtype(np.uint8) if survey.dtype == np.uint8 else np.dtype(np.uint16)
    scale = site_scale(survey.shapes_px, plan.patch_size_px)

    # second pass: pixels, fitted to the patch and stored as integers of the window
    images = np.empty((survey.n_slices, survey.n_channels, *plan.patch_size_px), dtype)
    entries: list[ImageEntry] = []
    for case in cases() if callable(cases) else cases:
        for index in thin_indices(case.array.shape[1], case.through_plane_spacing_mm, min_slice_distance_mm):
            pixels = fit_to_patch(_slice_values(case, index, intensity), plan.patch_size_px, scale)
            images[len(entries)] = encode(pixels, intensity, dtype)
            entries.append(ImageEntry(f"{case.case_id}_{index:04d}", case.case_id, index, case.patient, case.split))
        progress(len(entries), survey.n_slices, "slice")
    spacing_mm = (plan.spacing_mm[0] / scale, plan.spacing_mm[1] / scale)
    return ImageSet(images, tuple(entries), ImageSetInfo(intensity, scale, spacing_mm, volumetric))


def site_scale(shapes_px: Sequence[tuple[int, int]], patch_size_px: tuple[int, int]) -> float:
    """One isotropic factor for a site: 1, or less where its median image exceeds the patch on an axis."""
    height, width = np.median(np.asarray(shapes_px, float), axis=0)
    return float(min(1.0, patch_size_px[0] / height, patch_size_px[1] / width))


def fit_to_patch(image: np.ndarray, patch_size_px: tuple[int, int], scale: float = 1.0) -> np.ndarray:
    """(C, H, W) shrunk by ``scale`` (area average), then padded with edge values or cropped about its centre."""
    if scale < 1.0:
        height, width = image.shape[-2:]
        image = area_resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    for axis, target in zip((1, 2), patch_size_px, strict=True):
        image = _fit_axis(image, axis, target)
    return image


def fit_labels_to_patch(labels: np.ndarray, patch_size_px: tuple[int, int], scale: float = 1.0) -> np.ndarray:
    """The label map (H, W) of an image that ``fit_to_patch`` fits: where that averages, the largest share wins."""
    ids = np.unique(labels)
    if scale < 1.0:
        height, width = labels.shape
        size_px = (max(1, round(height * scale)), max(1, round(width * scale)))
        labels = ids[np.argmax(np.stack([area_resize((labels == i).astype(float), size_px) for i in ids]), axis=0)]
    return fit_to_patch(labels[None], patch_size_px)[0]


def restore_scale(images: np.ndarray, scale: float) -> np.ndarray:
    """Undo a site's ``scale`` on (n, C, H, W) float intensities: what is shared has real images' pixel size (D11)."""
    if scale == 1.0:
        return images
    from skimage.transform import resize

    height, width = (round(side / scale) for side in images.shape[-2:])
    restored: np.ndarray = resize(images, (*images.shape[:2], height, width), order=1, mode="edge", preserve_range=True)
    return restored.astype(images.dtype)


def restore_labels(labels: np.ndarray, scale: float) -> np.ndarray:
    """The same for label maps (n, H, W): interpolated label by label, the largest share wins."""
    if scale == 1.0:
        return labels
    ids = np.unique(labels)
    restored = []
    for label_map in labels:
        shares = restore_scale((label_map == ids[:, None, None]).astype(np.float32)[None], scale)[0]
        restored.append(ids[np.argmax(shares, axis=0)])
    return np.stack(restored)


def crop_to_nonzero(image: np.ndarray) -> np.ndarray:
    """The bounding box (C, h, w) of what is not 0 in all channels; an image of zeros stays whole."""
    return image[:, *nonzero_box(image)]


def nonzero_box(image: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of that bounding box in (C, H, W)."""
    from scipy.ndimage import find_objects

    boxes = find_objects(np.any(image != 0, axis=0).astype(np.uint8))
    return boxes[0] if boxes else (slice(None), slice(None))


def through_plane_spacing_mm(spacing_mm: Sequence[float], transpose_forward: Sequence[int]) -> float:
    """Spacing of the slice axis after nnU-Net's transposition, from a file's (z, y, x) spacing."""
    return float(spacing_mm[transpose_forward[0]])


def thin_indices(n_slices: int, through_plane_spacing_mm: float, min_distance_mm: float = 4.0) -> range:
    """Every n-th slice from the first, n the fewest that keeps them ``min_distance_mm`` apart."""
    step = math.ceil(min_distance_mm / through_plane_spacing_mm - 1e-6)
    return range(0, n_slices, max(1, step))


def encode(values: np.ndarray, intensity: Intensity, dtype: np.dtype) -> np.ndarray:
    """Clip (C, H, W) or (n, C, H, W) intensities to their channel's window and round them to integers of ``dtype``."""
    low, high = _channel_window(intensity)
    steps = np.iinfo(dtype).max
    return np.round((np.clip(values.astype(np.float64), low, high) - low) / (high - low) * steps).astype(dtype)


def decode(stored: np.ndarray, intensity: Intensity) -> np.ndarray:
    """The intensities, float32, of stored integers (C, H, W) or (n, C, H, W)."""
    low, high = _channel_window(intensity)
    return (low + stored.astype(np.float64) / np.iinfo(stored.dtype).max * (high - low)).astype(np.float32)


@dataclass(frozen=True)
class _Survey:
    """What the first pass over a site's cases finds."""

    shapes_px: list[tuple[int, int]]
    n_slices: int
    n_channels: int
    dtype: np.dtype
    samples: list[np.ndarray]  # (C, voxels) a case: strided voxels of floats, the extremes of integers

    def window(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(low, high) by channel; a channel that is constant at this site gets a window of width 1."""
        if self.dtype == np.uint8:
            return (0.0,) * self.n_channels, (255.0,) * self.n_channels
        values = np.concatenate(self.samples, axis=1)
        percentiles = (0.0, 100.0) if np.issubdtype(self.dtype, np.integer) else _WINDOW_PERCENTILES
        low, high = np.percentile(values, percentiles, axis=1)
        return tuple(low.tolist()), tuple(np.where(high > low, high, low + 1.0).tolist())


def _survey(cases: Iterable[SliceCase], min_slice_distance_mm: float) -> _Survey:
    shapes_px, samples, kinds, n_slices = [], [], set(), 0
    for case in cases:
        n_channels, depth, height, width = case.array.shape
        shapes_px.append((height, width))
        kinds.add((n_channels, case.array.dtype))
        n_slices += len(thin_indices(depth, case.through_plane_spacing_mm, min_slice_distance_mm))
        samples.append(_sample(case))
    if len(kinds) != 1:
        raise ValueError(f"slices need cases of one kind, not (channels, dtype) {sorted(map(str, kinds))}")
    n_channels, dtype = kinds.pop()
    return _Survey(shapes_px, n_slices, n_channels, dtype, samples)


def _sample(case: SliceCase) -> np.ndarray:
    voxels = case.array.reshape(len(case.array), -1)
    if np.issubdtype(voxels.dtype, np.integer):
        return np.stack([voxels.min(axis=1), voxels.max(axis=1)], axis=1)
    if case.outside is not None and not case.outside.all():
        voxels = voxels[:, ~case.outside.ravel()]
    return voxels[:, :: max(1, voxels.shape[1] // _VOXELS_A_CASE)]


def _slice_values(case: SliceCase, index: int, intensity: Intensity) -> np.ndarray:
    """(C, H, W); what is outside the normalisation's mask is set to the window's low end, as background."""
    values = case.array[:, index]
    if case.outside is None:
        return values
    low, _ = _channel_window(intensity)
    return np.where(case.outside[index], low, values)


def _channel_window(intensity: Intensity) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.array(side, np.float64)[:, None, None] for side in (intensity.low, intensity.high))
    return low, high


def _fit_axis(image: np.ndarray, axis: int, target: int) -> np.ndarray:
    missing = target - image.shape[axis]
    if missing > 0:
        widths = [(0, 0)] * image.ndim
        widths[axis] = (missing // 2, missing - missing // 2)
        return np.pad(image, widths, mode="edge")
    start = -missing // 2
    return np.take(image, np.arange(start, start + target), axis=axis)
