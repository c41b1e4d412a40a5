"""Copies that a filter must find: a site's own images under many kinds of change, each at several strengths.

Nothing in the filter refers to this list: it only measures the filter, which must also find copies of kinds
that are not listed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.ndimage when it is used

# image (channels, height, width) in [0, 1], strength, random numbers, an image of another patient -> image
Change = Callable[[np.ndarray, float, np.random.Generator, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """One kind of copy; ``group`` shares a goal."""

    name: str
    group: str
    unit: str
    strengths: tuple[float, ...]
    change: Change


@dataclass(frozen=True)
class Condition:
    """A kind at one strength."""

    kind: str
    group: str
    strength: float
    unit: str


def plant(kind: Kind, strength: float, images: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    """Copies of ``images`` (n, channels, height, width), integers, each beside an image of another patient."""
    scale = np.iinfo(images.dtype).max
    rng = np.random.default_rng(seed)
    planted = [
        kind.change(image.astype(np.float32) / scale, strength, rng, other.astype(np.float32) / scale)
        for image, other in zip(images, others, strict=True)
    ]
    return np.rint(np.clip(np.stack(planted), 0, 1) * scale).astype(images.dtype)


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    from PIL import Image

    channels = []
    for channel in image:
        stream = io.BytesIO()
        pixels = Image.fromarray(np.rint(np.clip(channel, 0, 1) * 255).astype(np.uint8))
        pixels.save(stream, format="JPEG", quality=int(quality))
        channels.append(np.asarray(Image.open(stream), np.float32) / 255)
    return np.stack(channels)


def _coarser(image: np.ndarray, factor: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    small = scipy.ndimage.zoom(image, (1, 1 / factor, 1 / factor), order=1)
    ratio = [n / m for n, m in zip(image.shape[1:], small.shape[1:], strict=True)]
    return scipy.ndimage.zoom(small, (1, *ratio), order=1)


def _noise(image: np.ndarray, sd: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return image + rng.normal(0, sd, image.shape)


def _blur(image: np.ndarray, sigma_px: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(image, (0, sigma_px, sigma_px))


def _sharpen(image: np.ndarray, amount: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return image + amount * (image - scipy.ndimage.gaussian_filter(image, (0, 1.5, 1.5)))


def _contrast(image: np.ndarray, factor: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return (image - image.mean()) * factor + image.mean()


def _gamma(image: np.ndarray, exponent: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return image**exponent


def _window(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """The middle ``share`` of the grey values at full contrast."""
    low, high = np.quantile(image, [(1 - share) / 2, (1 + share) / 2])
    return (image - low) / max(high - low, 1e-3)


def _bias_field(image: np.ndarray, depth: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape[1:]), indexing="ij")
    angle, curve = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1)
    field = np.cos(angle) * rows + np.sin(angle) * columns + curve * (rows**2 + columns**2 - 0.7)
    return image * np.exp(depth * field)


def _mirror(image: np.ndarray, axis: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """0: left and right; 1: up and down."""
    return image[..., ::-1] if axis == 0 else image[:, ::-1]


def _quarter_turns(image: np.ndarray, n_turns: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    turned = np.rot90(image, int(n_turns), axes=(1, 2))
    if turned.shape == image.shape:
        return turned
    ratio = [n / m for n, m in zip(image.shape[1:], turned.shape[1:], strict=True)]
    return scipy.ndimage.zoom(turned, (1, *ratio), order=1)


def _warp(image: np.ndarray, matrix: np.ndarray, shift_px: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """``matrix`` (2, 2) takes a pixel of the result, seen from the centre, to one of the image."""
    centre = (np.asarray(image.shape[1:]) - 1) / 2
    offset = centre - matrix @ (centre + np.asarray(shift_px))
    return np.stack([scipy.ndimage.affine_transform(c, matrix, offset, order=1, cval=_border(c)) for c in image])


def _border(channel: np.ndarray) -> float:
    """What lies beyond the image's edge."""
    return float(np.median(np.concatenate([channel[0], channel[-1], channel[:, 0], channel[:, -1]])))


def _turn_matrix(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def _rotation(image: np.ndarray, degrees: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return _warp(image, _turn_matrix(degrees * rng.choice((-1, 1))))


def _shift(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    height, width = image.shape[1:]
    down, right = rng.choice((-1, 1), 2)
    return _warp(image, np.eye(2), (down * share * height, right * share * width))


def _zoom(image: np.ndarray, factor: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return _warp(image, np.eye(2) / factor)


def _stretch(image: np.ndarray, factor: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Along one axis."""
    factors = (factor, 1.0) if rng.random() < 0.5 else (1.0, factor)
    return _warp(image, np.diag(1 / np.asarray(factors)))


def _shear(image: np.ndarray, slope: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return _warp(image, np.array([[1.0, 0.0], [slope * rng.choice((-1, 1)), 1.0]]))


def _crop(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """A part of ``share`` of each side, anywhere, enlarged to the whole size."""
    height, width = image.shape[1:]
    size = max(2, round(height * share)), max(2, round(width * share))
    top, left = rng.integers(0, height - size[0] + 1), rng.integers(0, width - size[1] + 1)
    part = image[:, top : top + size[0], left : left + size[1]]
    return scipy.ndimage.zoom(part, (1, height / size[0], width / size[1]), order=1)


def _cutout(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """A rectangle of ``share`` of the area becomes grey."""
    rows, columns = _rectangle(image, share, rng)
    cut = image.copy()
    cut[:, rows, columns] = rng.random()
    return cut


def _rectangle(image: np.ndarray, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    height, width = image.shape[1:]
    size = round(height * share**0.5), round(width * share**0.5)
    top, left = rng.integers(0, height - size[0] + 1), rng.integers(0, width - size[1] + 1)
    return slice(top, top + size[0]), slice(left, left + size[1])


def _elastic(image: np.ndarray, largest_px: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """A smooth random displacement, at its largest ``largest_px``."""
    noise = rng.normal(size=(2, *image.shape[1:]))
    fields = scipy.ndimage.gaussian_filter(noise, (0, *(n / 10 for n in image.shape[1:])))
    fields *= largest_px / np.hypot(*fields).max()
    positions = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape[1:]), indexing="ij")) + fields
    return np.stack([scipy.ndimage.map_coordinates(c, positions, order=1, mode="nearest") for c in image])


def _blend(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return (1 - share) * image + share * other


def _paste(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """A part of the image in the other patient's, where it was."""
    rows, columns = _rectangle(image, share, rng)
    pasted = other.copy()
    pasted[:, rows, columns] = image[:, rows, columns]
    return pasted


def _paste_elsewhere(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    source, target = _rectangle(image, share, rng), _rectangle(image, share, rng)
    pasted = other.copy()
    pasted[:, target[0], target[1]] = image[:, source[0], source[1]]
    return pasted


def _marker(image: np.ndarray, share: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Bright bars along an edge, as burnt-in text."""
    marked, height = image.copy(), max(1, round(share * image.shape[1]))
    bars = np.repeat(rng.random(image.shape[2] // 2 + 1) < 0.5, 2)[: image.shape[2]]
    marked[:, :height][..., bars] = 1.0
    return marked


def _mirrored_turned(image: np.ndarray, strength: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return _gamma(_rotation(image[..., ::-1], 10, rng, other), 1.6, rng, other)


def _cropped_blurred(image: np.ndarray, strength: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return _noise(_blur(_crop(image, 0.8, rng, other), 1, rng, other), 0.03, rng, other)


def _shifted_flatter(image: np.ndarray, strength: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return _jpeg(_contrast(_shift(image, 0.06, rng, other), 0.7, rng, other), 50, rng, other)


ONCE = (1.0,)
KINDS = (
    Kind("identity", "exact", "", ONCE, lambda image, *_: image),
    Kind("jpeg", "compression", "quality", (90, 50, 20), _jpeg),
    Kind("grey levels", "compression", "levels", (32, 12), lambda image, n, *_: np.rint(image * (n - 1)) / (n - 1)),
    Kind("coarser", "compression", "x", (1.5, 2), _coarser),
    Kind("noise", "photometric", "sd", (0.02, 0.05, 0.1), _noise),
    Kind("blur", "photometric", "px", (1, 2, 4), _blur),
    Kind("sharpen", "photometric", "", (1, 2), _sharpen),
    Kind("brightness", "photometric", "", (-0.2, 0.1, 0.2), lambda image, shift, *_: image + shift),
    Kind("contrast", "photometric", "x", (0.5, 1.5), _contrast),
    Kind("gamma", "photometric", "", (0.5, 2), _gamma),
    Kind("negative", "photometric", "", ONCE, lambda image, *_: 1 - image),
    Kind("window", "photometric", "of values", (0.9, 0.7), _window),
    Kind("bias field", "photometric", "", (0.3, 0.6), _bias_field),
    Kind("mirror", "symmetry", "axis", (0, 1), _mirror),
    Kind("quarter turns", "symmetry", "", (1, 2, 3), _quarter_turns),
    Kind("rotation", "small geometric", "deg", (5, 10), _rotation),
    Kind("shift", "small geometric", "of side", (0.06, 0.12), _shift),
    Kind("zoom", "small geometric", "x", (0.8, 0.9, 1.1, 1.25), _zoom),
    Kind("large rotation", "large geometric", "deg", (20, 30), _rotation),
    Kind("stretch", "large geometric", "x", (1.15, 1.3), _stretch),
    Kind("shear", "large geometric", "", (0.1, 0.2), _shear),
    Kind("crop", "large geometric", "of side", (0.9, 0.8, 0.6), _crop),
    Kind("elastic", "large geometric", "px", (2, 4), _elastic),
    Kind("cutout", "occlusion", "of area", (0.25, 0.5), _cutout),
    Kind("marker", "occlusion", "of side", (0.1,), _marker),
    Kind("blend", "mixture", "of another", (0.1, 0.2), _blend),
    Kind("paste", "part", "of area", (0.125, 0.25, 0.5), _paste),
    Kind("paste elsewhere", "part", "of area", (0.125, 0.25), _paste_elsewhere),
    Kind("mirrored, turned, darker", "composition", "", ONCE, _mirrored_turned),
    Kind("cropped, blurred, noisy", "composition", "", ONCE, _cropped_blurred),
    Kind("shifted, flatter, jpeg", "composition", "", ONCE, _shifted_flatter),
)
