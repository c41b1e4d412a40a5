"""Which size is generated, and which of the plan's strides the autoencoder and the denoiser take; no PyTorch.

The rules stand in the table of ``diffusion.planning``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InputError
from common.plan import Plan
from diffusion.settings import AUTO, AutoencoderConfig, DiffusionConfig, Size

EDGES = (32, 48, 56, 64, 96, 112, 128, 192, 224, 256, 384, 448, 512)  # voxels, spec 4.1
LARGEST_OF_DOWNSAMPLINGS = (64, 256)  # largest edge for 1 and for 2 of them; 3 beyond, spec 4.2
MOST_LEVELS, MOST_LATENT_LEVELS = 4, 3
SHORTEST_EDGE, SHORTEST_LARGEST_EDGE = 4, 8  # voxels, of a denoiser's smallest level
WHERE = "generator.settings"


@dataclass(frozen=True)
class Layout:
    """Size of an image, and what leads from each level of the networks to the next smaller one."""

    image_size: Size
    first_kernel: Size
    autoencoder_strides: tuple[Size, ...]  # none in pixels
    autoencoder_kernels: tuple[Size, ...]
    denoiser_first_kernel: Size
    denoiser_strides: tuple[Size, ...]
    denoiser_kernels: tuple[Size, ...]

    @property
    def denoised_size(self) -> Size:
        """Of an image, or of its latent."""
        return shrunk(self.image_size, self.autoencoder_strides)


def shrunk(size: Size, strides: Sequence[Size]) -> Size:
    """``size`` after ``strides``; every axis is divisible by its own."""
    for stride in strides:
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
    return size


def layout_of(plan: Plan, config: DiffusionConfig) -> Layout:
    """Size, strides and kernels; widths that are given say how many levels there are.

    Raises:
        InputError: the plan has no stride that divides the size, or fewer strides than the settings ask for.
    """
    size = plan.patch_size if plan.n_axes == 2 else tuple(_nearest_edge(n) for n in plan.median_image_size)
    strides, kernels = plan.strides[1:], plan.kernel_sizes[1:]
    n_down = 0 if config.autoencoder is None else _n_downsamplings(plan, config.autoencoder, size)
    n_more = _n_denoiser_strides(plan, config, size, n_down)
    used = strides[: n_down + n_more]
    if plan.n_axes == 3:
        size = tuple(
            _nearest_multiple(n, factor, median)
            for n, factor, median in zip(size, _product(used, 3), plan.median_image_size, strict=True)
        )
    return Layout(
        image_size=size,
        first_kernel=plan.kernel_sizes[0],
        autoencoder_strides=strides[:n_down],
        autoencoder_kernels=kernels[:n_down],
        denoiser_first_kernel=plan.kernel_sizes[n_down],
        denoiser_strides=strides[n_down : n_down + n_more],
        denoiser_kernels=kernels[n_down : n_down + n_more],
    )


def _nearest_edge(median: int) -> int:
    """Of EDGES; an axis shorter than all of them stays as it is."""
    return median if median < EDGES[0] else min(EDGES, key=lambda edge: (abs(edge - median), edge))


def _nearest_multiple(edge: int, factor: int, median: int) -> int:
    """Of ``factor``, nearest to ``edge``; of two as near the one nearer to ``median``, then the smaller."""
    below = max(1, edge // factor) * factor
    return min((below, below + factor), key=lambda n: (abs(n - edge), abs(n - median), n))


def _product(strides: Sequence[Size], n_axes: int) -> Size:
    return tuple(math.prod(stride[axis] for stride in strides) for axis in range(n_axes))


def _n_downsamplings(plan: Plan, config: AutoencoderConfig, size: Size) -> int:
    """Of the autoencoder."""
    strides = plan.strides[1:]
    given = config.n_downsamplings
    if not isinstance(config.channels, str):
        if given not in (AUTO, len(config.channels) - 1):
            problem = f"{len(config.channels)} widths for n_downsamplings={given}"
            raise InputError(problem, where=f"{WHERE}.autoencoder.channels", fix="give one width more than those")
        given = len(config.channels) - 1
    where = f"{WHERE}.autoencoder.n_downsamplings"
    if not isinstance(given, str):
        _check_strides(plan, size, int(given), where)
        n_down = int(given)
    else:
        limits = [*LARGEST_OF_DOWNSAMPLINGS, math.inf]
        wanted = 1 + next(i for i, largest in enumerate(limits) if max(size) <= largest)
        n_down = max(1, _n_usable(size, strides[:wanted], is_exact=plan.n_axes == 2, largest_edge=SHORTEST_EDGE))
        _check_strides(plan, size, n_down, where)
    if n_down == 0:
        raise InputError("this autoencoder keeps the size", where=where, fix="give 1 or more, or no autoencoder")
    return n_down


def _n_denoiser_strides(plan: Plan, config: DiffusionConfig, size: Size, n_down: int) -> int:
    if not isinstance(config.channels, str):
        n_more = len(config.channels) - 1
        _check_strides(plan, size, n_down + n_more, f"{WHERE}.channels")
        return n_more
    most = (MOST_LEVELS if config.autoencoder is None else MOST_LATENT_LEVELS) - 1
    left = plan.strides[1 + n_down : 1 + n_down + most]
    factors = _product(plan.strides[1 : 1 + n_down], plan.n_axes)
    is_exact = plan.n_axes == 2
    edges = tuple(n / factor for n, factor in zip(size, factors, strict=True))
    return _n_usable(edges, left, is_exact, SHORTEST_LARGEST_EDGE)


def _n_usable(edges: Sequence[float], strides: Sequence[Size], is_exact: bool, largest_edge: int) -> int:
    """Strides until an axis that one shortens is too short; ``is_exact``: or not divisible by it."""
    for n_used, stride in enumerate(strides):
        after = [n / s for n, s in zip(edges, stride, strict=True)]
        is_short = any(n < SHORTEST_EDGE for n, s in zip(after, stride, strict=True) if s > 1)
        longest = max(range(len(after)), key=lambda axis: edges[axis])
        is_short |= stride[longest] > 1 and max(after) < largest_edge
        if is_short or (is_exact and any(n != int(n) for n in after)):
            return n_used
        edges = after
    return len(strides)


def _check_strides(plan: Plan, size: Size, n_used: int, where: str) -> None:
    """InputError unless the plan has ``n_used`` strides and a fixed size is divisible by them."""
    n_there = len(plan.strides) - 1
    if n_used > n_there:
        problem = f"{n_used} downsamplings, and the plan {plan.configuration!r} has {n_there}"
        raise InputError(problem, where=where, fix="ask for fewer, or train in pixels (no autoencoder)")
    factors = _product(plan.strides[1 : 1 + n_used], plan.n_axes)
    if plan.n_axes == 2 and any(n % factor for n, factor in zip(size, factors, strict=True)):
        problem = f"images of {size} are not divisible by {factors}, {n_used} of the plan's strides"
        raise InputError(problem, where=where, fix="ask for fewer downsamplings")


def sizes_of_levels(size: Size, strides: Sequence[Size]) -> list[Size]:
    """Of every level, the first being ``size``."""
    return list(itertools.accumulate(strides, lambda now, stride: shrunk(now, [stride]), initial=size))
