"""Images as they are compared (one grey channel of 64 px), how one lies over another, and how two are aligned.

Maps are locally normalised: a band of detail is divided by its own local size. Brightness, contrast, gamma, shading and
window settings then make no difference. A negative has the opposite sign; whoever compares tries both signs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cache
from math import isqrt

import numpy as np
import torch
from torch.nn import functional as F

SIZE_PX = 64  # images of any size are compared at this one
LEAST_CONTRAST = 0.01  # of the range of grey values: structure below it is not amplified
FLAT_NORM = 0.5  # of cells: those without structure match nothing
LEAST_AREA, LARGEST_AREA = 0.1, 8.0  # of a pose's determinant; beyond, one blob fits any other


def grey(images: np.ndarray) -> torch.Tensor:
    """(n, channels, height, width) uint8 or uint16 -> (n, 1, SIZE_PX, SIZE_PX) float32 in [0, 1]."""
    mean = images.mean(axis=1, keepdims=True, dtype=np.float32) / np.iinfo(images.dtype).max
    pixels = torch.from_numpy(mean.astype(np.float32))
    if pixels.shape[-2:] == (SIZE_PX, SIZE_PX):
        return pixels
    return F.interpolate(pixels, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False, antialias=True)


def smooth(x: torch.Tensor, sigma_px: float) -> torch.Tensor:
    """Gaussian of (n, 1, h, w) with the border repeated; 0 leaves it alone."""
    if sigma_px <= 0:
        return x
    return _gaussian(x.shape[-2], sigma_px) @ (x @ _gaussian(x.shape[-1], sigma_px).T)


@cache
def _gaussian(size: int, sigma_px: float) -> torch.Tensor:
    """(size, size): smoothing along an axis as a product, which is several times faster than a convolution here."""
    reach = min(max(1, math.ceil(3 * sigma_px)), size - 1)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(offsets.float() ** 2) / (2 * sigma_px**2))
    source = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    return torch.zeros(size, size).scatter_add_(1, source, (kernel / kernel.sum()).expand(size, -1))


def pooled(x: torch.Tensor, window: int, n_places: int | None = None) -> torch.Tensor:
    """Means of (n, 1, s, s) over windows round n_places x n_places samples, or round all; inside the image alone."""
    matrix = _windows(x.shape[-1], window, n_places or x.shape[-1])
    return matrix @ (x @ matrix.T)


@cache
def _windows(size: int, window: int, n_places: int) -> torch.Tensor:
    """(n_places, size): means over windows along an axis."""
    middle = torch.arange(n_places)[:, None] * (size // n_places)
    inside = ((torch.arange(size) - middle).abs() <= window // 2).float()
    return inside / inside.sum(1, keepdim=True)


def band(x: torch.Tensor, fine_px: float, coarse_px: float) -> torch.Tensor:
    """What lies between two Gaussians (a difference of Gaussians)."""
    return smooth(x, fine_px) - smooth(x, coarse_px)


def locally_normalised(x: torch.Tensor, fine_px: float, coarse_px: float, window_px: float) -> torch.Tensor:
    """A band divided by its local root mean square."""
    detail = band(x, fine_px, coarse_px)
    return detail / torch.sqrt(smooth(detail * detail, window_px) + LEAST_CONTRAST**2)


def halved(x: torch.Tensor) -> torch.Tensor:
    """Half the size, by means of 2 x 2."""
    return F.avg_pool2d(x, 2)


def low_map(x: torch.Tensor) -> torch.Tensor:
    """(n, 1, 64, 64) -> (n, 1, 32, 32): structures of 3 to 9 px, for finding and first alignment."""
    return locally_normalised(halved(x), 0.8, 2.2, 3.0)


def middle_map(x: torch.Tensor) -> torch.Tensor:
    """(n, 1, 64, 64), same size: structures of 2 to 5 px, for local search and last alignment."""
    return locally_normalised(x, 0.8, 2.4, 5.0)


def warped(x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images seen from a reference: the value at ``u`` is that of ``x`` at ``matrix u + shift``.

    Args:
        x: (n, c, h, w); matrix: (n, 2, 2); shift: (n, 2); coordinates (x, y) with the borders at -1 and 1.

    Returns:
        (n, c, size, size), and where the image was (n, 1, size, size), 0 or 1.
    """
    line = torch.linspace(-1, 1, size)
    along_x = matrix[:, :, 0, None] * line + shift[:, :, None]
    along_y = matrix[:, :, 1, None] * line
    return _sampled(x, along_x[:, :, None, :] + along_y[:, :, :, None])


def displaced(
    x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, field: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same at ``matrix (u + field) + shift``; ``field`` (n, 2, size, size), (x, y) in samples."""
    size = field.shape[-1]
    line = torch.linspace(-1, 1, size)
    at_x = line + field[:, 0] * 2 / (size - 1)
    at_y = line[:, None] + field[:, 1] * 2 / (size - 1)
    columns = matrix[:, :, :, None, None]
    return _sampled(x, columns[:, :, 0] * at_x[:, None] + columns[:, :, 1] * at_y[:, None] + shift[:, :, None, None])


def _sampled(x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``places`` (n, 2, h, w): (x, y)."""
    inside = ((places[:, 0].abs() <= 1) & (places[:, 1].abs() <= 1))[:, None].to(x.dtype)
    return F.grid_sample(x, places.permute(0, 2, 3, 1), align_corners=True, padding_mode="border"), inside


def unit(cells: torch.Tensor, dim: int, flat_norm: float) -> torch.Tensor:
    """Cells without their mean and of length 1 along ``dim``, or less where there is hardly any structure."""
    cells = cells - cells.mean(dim, keepdim=True)
    return cells / (cells.norm(dim=dim, keepdim=True) + flat_norm)


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells in standard form: ``values`` (n, size * size), and the ``form`` and ``sign`` (n,) that led to it."""

    values: torch.Tensor
    form: torch.Tensor
    sign: torch.Tensor


def forms() -> torch.Tensor:
    """(8, 2, 2): mirrored along x (1), along y (2), axes exchanged (4)."""
    exchange = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    flips = [torch.diag(torch.tensor([x, y])) for y in (1.0, -1.0) for x in (1.0, -1.0)]
    return torch.stack([*flips, *(flip @ exchange for flip in flips)])


def standard(cells: torch.Tensor) -> Cells:
    """Cells (n, size * size) in one of their eight symmetric forms and one sign, chosen by their moments.

    Two cells that are alike but for symmetry and sign are alike in standard form, and their forms tell how one leads to
    the other: mirrored, turned and negative parts cost no more to find than plain ones.
    """
    cells = unit(cells, 1, FLAT_NORM)
    size = isqrt(cells.shape[1])
    line = torch.arange(size) - (size - 1) / 2
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    offsets = torch.stack([columns, rows], -1).reshape(-1, 2)  # (x, y) of the samples from the middle
    # the sign that makes the second moment positive: bright off the middle
    radius = offsets.square().sum(1)
    sign = torch.where(cells @ (radius - radius.mean()) < 0, -1.0, 1.0)
    # the form that makes both first moments positive, the larger along x
    along = cells @ offsets * sign[:, None]
    exchanged = along[:, 1].abs() > along[:, 0].abs()
    form = (along[:, 0] < 0).long() + 2 * (along[:, 1] < 0).long() + 4 * exchanged.long()
    # the value at u is that at "form u"
    source = (torch.einsum("fij,pj->fpi", forms(), offsets) + (size - 1) / 2).round().long()
    taken = source[..., 1] * size + source[..., 0]
    return Cells(torch.gather(cells * sign[:, None], 1, taken[form]), form, sign)


@dataclass(frozen=True, eq=False)
class Poses:
    """How queries may lie over references: the affine maps from the frame of a reference to that of its query.

    ``query`` and ``reference`` (n,) positions, ``sign`` (n,) -1 for a negative, ``matrix`` (n, 2, 2), ``shift`` (n, 2).
    """

    query: torch.Tensor
    reference: torch.Tensor
    sign: torch.Tensor
    matrix: torch.Tensor
    shift: torch.Tensor

    def at(self, positions: torch.Tensor) -> Poses:
        """The poses at these positions."""
        return Poses(**{field.name: getattr(self, field.name)[positions] for field in fields(self)})

    @property
    def plausible(self) -> torch.Tensor:
        """(n,): neither collapsed nor blown up."""
        area = torch.linalg.det(self.matrix).abs()
        return (area > LEAST_AREA) & (area < LARGEST_AREA) & torch.isfinite(self.shift).all(1)


def joined(parts: list[Poses]) -> Poses:
    """All poses of several searches."""
    return Poses(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Poses)})


def turned(quarters: int, mirrored: bool, degrees: float = 0.0) -> torch.Tensor:
    """(2, 2): the frame turned, then mirrored along x."""
    angle = math.radians(90 * quarters + degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    flip = torch.diag(torch.tensor([-1.0 if mirrored else 1.0, 1.0]))
    return torch.tensor([[cos, -sin], [sin, cos]]) @ flip


def symmetries() -> torch.Tensor:
    """(8, 2, 2): quarter turns, each mirrored and not."""
    return torch.stack([turned(quarters, mirrored).round() for mirrored in (False, True) for quarters in range(4)])


ALIGNMENT_WINDOW = 9  # of the local agreement, in samples
LARGEST_STEP = 0.15  # of half the image, per step
DAMPING = 1e-3
LEAST_WEIGHT = 0.02


def align(queries: torch.Tensor, references: torch.Tensor, poses: Poses, n_steps: int) -> tuple[Poses, torch.Tensor]:
    """Affine alignment by Gauss-Newton (inverse compositional, Baker and Matthews 2004).

    Places where the two agree weigh more, so that an occluder, a second image or an elastic change pulls little.

    Args:
        queries, references: locally normalised maps (n, 1, s, s), pair by pair.

    Returns:
        The refined poses, and the agreement (n,) that they reach, 0 to 1.
    """
    n, size = len(queries), queries.shape[-1]
    # steepest descent (n, 6, pixels): change of a reference's value with each of the affine parameters
    line = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    place = torch.stack([columns, rows, torch.ones_like(rows)])
    half = (size - 1) / 2  # pixels per unit
    descent = torch.cat([along * half * place for along in _gradients(references)], 1).flatten(2)

    energy = pooled(references * references, ALIGNMENT_WINDOW)
    matrix, shift = poses.matrix, poses.shift
    for step in range(n_steps + 1):
        # how well the two agree near each place, with the image as it lies now
        seen, inside = warped(queries, matrix, shift, size)
        seen = seen * poses.sign[:, None, None, None]
        own_energy = pooled(seen * seen, ALIGNMENT_WINDOW)
        local = pooled(seen * references, ALIGNMENT_WINDOW) / torch.sqrt(own_energy * energy + 1e-3)
        weight = local.clamp_min(LEAST_WEIGHT) ** 2 * inside
        if step == n_steps:
            break
        # weighted least squares: the affine change of the reference that explains the difference
        weighted = descent * weight.reshape(n, 1, -1)
        normal = weighted @ descent.transpose(1, 2)
        damping = DAMPING * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        difference = weighted @ (seen - references).reshape(n, -1, 1)
        change = torch.linalg.solve(normal + damping[:, None, None] * torch.eye(6), difference)
        change = change[..., 0].clamp(-LARGEST_STEP, LARGEST_STEP).view(n, 2, 3)
        # the image moves by the inverse of that change
        matrix = matrix @ torch.linalg.inv(torch.eye(2) + change[:, :, :2])
        shift = shift - torch.einsum("bij,bj->bi", matrix, change[:, :, 2])
    agreement = F.relu(local).square().mul(inside).flatten(1).mean(1)
    return replace(poses, matrix=matrix, shift=shift), agreement


def _gradients(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Central differences of (n, 1, s, s) along x and along y, per sample; 0 at the border."""
    along_x = F.pad((maps[..., 2:] - maps[..., :-2]) / 2, (1, 1, 0, 0))
    return along_x, F.pad((maps[..., 2:, :] - maps[..., :-2, :]) / 2, (0, 0, 1, 1))


BEND_WINDOW_PX = 5.0  # of the flow: what bends within less is another image
LARGEST_BEND_STEP_PX = 1.0
BEND_DAMPING = 0.05  # of the mean of the structure tensor: where there is no structure, nothing moves
N_BEND_STEPS = 6  # on either map


def bend(queries: torch.Tensor, references: torch.Tensor, poses: Poses) -> torch.Tensor:
    """Displacements (n, 2, 64, 64) in px that lay the posed queries (n, 1, 64, 64) over the references.

    Optical flow with a wide window, coarse to fine (Lucas and Kanade 1981), with the gradient of the reference for that
    of the image: after affine alignment the two are nearly alike.
    """
    field = torch.zeros(len(queries), 2, SIZE_PX, SIZE_PX)
    for map_of in (low_map, middle_map):
        target, source = map_of(references), map_of(queries)
        scale = SIZE_PX // target.shape[-1]
        window = BEND_WINDOW_PX / scale
        steps = F.avg_pool2d(field, scale) / scale  # in samples of this map
        for _ in range(N_BEND_STEPS):
            # what is missing where the image is, and the reference's gradient there
            seen, inside = displaced(source, poses.matrix, poses.shift, steps)
            missing = (target - seen * poses.sign[:, None, None, None]) * inside
            along_x, along_y = (along * inside for along in _gradients(target))
            # the structure tensor and the gradient times the difference, over the window; solved place by place
            xx, yy = smooth(along_x * along_x, window), smooth(along_y * along_y, window)
            xy, x, y = (
                smooth(product, window) for product in (along_x * along_y, along_x * missing, along_y * missing)
            )
            damping = BEND_DAMPING * (xx + yy).mean((1, 2, 3), keepdim=True) + 1e-6
            xx, yy = xx + damping, yy + damping
            step = torch.cat([yy * x - xy * y, xx * y - xy * x], 1) / (xx * yy - xy * xy)
            steps = steps + step.clamp(-LARGEST_BEND_STEP_PX, LARGEST_BEND_STEP_PX)
        field = F.interpolate(steps, scale_factor=scale, mode="bilinear") * scale
    return field
