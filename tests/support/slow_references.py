"""What the generator's operations are held to: loops too slow and plain to be wrong, and derivatives in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.plan import Pair


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def derivatives(function: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The value, its first derivatives by every input and their derivatives along a random direction."""
    inputs = [one.to(dtype).requires_grad_(True) for one in inputs]
    value = function(*inputs)
    # squared, so that a linear function has a second derivative too
    weighted = (value.square() * normal(*value.shape, seed=91).to(dtype)).sum()
    first = torch.autograd.grad(weighted, inputs, create_graph=True)
    along = [(one * normal(*one.shape, seed=92 + index).to(dtype)).sum() for index, one in enumerate(first)]
    second = torch.autograd.grad(torch.stack(along).sum(), inputs)
    return [one.detach().double() for one in (value, *first, *second)]


def assert_equal_to_second_order(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: Sequence[Tensor]
) -> None:
    """Fast in float32 is slow in float64, derivatives of first and second order included, within 1e-5 relative."""
    measured, expected = derivatives(fast, inputs, torch.float32), derivatives(slow, inputs, torch.float64)
    for index, (ours, theirs) in enumerate(zip(measured, expected, strict=True)):
        assert ours.shape == theirs.shape and theirs.norm() > 0, index
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), index


def correlate(x: Tensor, weights: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """``weights`` (b, n_out, n_in, kh, kw) are those of each image. One output pixel and one tap at a time."""
    kernel = weights.shape[3:]
    size = [(x.shape[2 + a] + 2 * padding[a] - kernel[a]) // stride[a] + 1 for a in (0, 1)]
    pixels = []
    for row, column in itertools.product(range(size[0]), range(size[1])):
        pixel = x.new_zeros(weights.shape[:2])
        for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
            r, c = row * stride[0] + i - padding[0], column * stride[1] + j - padding[1]
            if 0 <= r < x.shape[2] and 0 <= c < x.shape[3]:
                pixel = pixel + (weights[..., i, j] * x[:, None, :, r, c]).sum(dim=2)
        pixels.append(pixel)
    return torch.stack(pixels, dim=-1).unflatten(-1, size)


def filtered(x: Tensor, axis: int, factor: int, before: int, n: int) -> Tensor:
    """``n`` samples of the triangle filter with zeros around ``x``; the first begins ``before`` samples before it."""
    taps = [factor - abs(tap + 0.5 - factor) for tap in range(2 * factor)]
    samples = []
    for position in range(n):
        sample = torch.zeros_like(x.select(axis, 0))
        for tap, weight in enumerate(taps):
            if 0 <= position + tap - before < x.shape[axis]:
                sample = sample + x.select(axis, position + tap - before) * (weight / sum(taps))
        samples.append(sample)
    return torch.stack(samples, dim=axis)


def enlarged(x: Tensor, weights: Tensor, factors: Pair) -> Tensor:
    """Zeros between the pixels, a full convolution, the filter with the gain of ``factors``, along each axis.

    The window of an output pixel is centred on it: where the two filters together have an even length, half a pixel
    before.
    """
    n_images, n_channels, height, width = x.shape
    spread = x.new_zeros(n_images, n_channels, height * factors[0], width * factors[1])
    for row, column in itertools.product(range(height), range(width)):
        spread[:, :, row * factors[0], column * factors[1]] = x[:, :, row, column]
    kernel = weights.shape[3:]
    full = [kernel[a] - 1 if factors[a] > 1 else kernel[a] // 2 for a in (0, 1)]
    x = correlate(spread, weights.flip(3, 4), (1, 1), (full[0], full[1]))  # a convolution: turned round
    for axis, factor, length in ((2, factors[0], kernel[0]), (3, factors[1], kernel[1])):
        if factor > 1:
            before = math.ceil((2 * factor - 1 + factor - length) / 2)
            x = filtered(x, axis, factor, before, spread.shape[axis]) * factor
    return x


def reduced(x: Tensor, weights: Tensor, factors: Pair) -> Tensor:
    """The filter along the axes that shrink, then a strided convolution; windows centred on the output pixels."""
    kernel = weights.shape[3:]
    for axis, factor, length in ((2, factors[0], kernel[0]), (3, factors[1], kernel[1])):
        if factor > 1:
            before = math.ceil((factor + length - 1) / 2)
            x = filtered(x, axis, factor, before, x.shape[axis] + length - factor)
    still = [kernel[a] // 2 if factors[a] == 1 else 0 for a in (0, 1)]
    return correlate(x, weights, factors, (still[0], still[1]))


def activated(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
