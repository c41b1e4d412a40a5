"""Operations of StyleGAN2 with derivatives of their own, to any order, where autograd's would move too much memory.

On a CPU and on a GPU alike the time beside the convolutions goes into reading and writing activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.plan import Pair

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
EPSILON = 1e-8
PIECE_VALUES = 2**19  # 2 MiB of float32

_weights_are_wanted = True


@contextmanager
def gradients_of_activations() -> Iterator[None]:
    """Inside, derivatives by weights are left out: the regularisations differentiate by an image or by styles first.

    Autograd asks its own operations only for the derivatives that are wanted; those written in Python it asks for all.
    The switch is the process's, since derivatives on a GPU are computed in threads of autograd's.
    """
    global _weights_are_wanted
    _weights_are_wanted = False
    try:
        yield
    finally:
        _weights_are_wanted = True


def are_weights_wanted() -> bool:
    """Whether a derivative must be taken by weights too."""
    return _weights_are_wanted


def leaky_relu_(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, in place on ``x``, which no other operation may need for its derivative.

    The gain of sqrt(2) that keeps the variance (StyleGAN2, appendix B) is left to whatever made ``x``: the function is
    homogeneous, so it costs nothing there.
    """
    activated: Tensor = _LeakyRelu.apply(x)
    return activated


class _LeakyRelu(torch.autograd.Function):
    """Piecewise linear, so that its derivative does not depend on where in a piece: no second derivative to compute."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.mark_dirty(x)
        F.leaky_relu_(x, LRELU_SLOPE)
        context.save_for_backward(x)
        return x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (y,) = context.saved_tensors
        return _gate(gradient, y)


class _Gate(torch.autograd.Function):
    """Gradient times the slope at ``y``, and so to any order."""

    @staticmethod
    def forward(context: Any, gradient: Tensor, y: Tensor) -> Tensor:
        context.save_for_backward(y)
        return torch.ops.aten.leaky_relu_backward(gradient, y, LRELU_SLOPE, True)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = context.saved_tensors
        return _gate(gradient, y), None


def _gate(gradient: Tensor, y: Tensor) -> Tensor:
    gated: Tensor = _Gate.apply(gradient, y.detach())
    return gated


def styled_activation(x: Tensor, scale: Tensor, noise: Tensor, strength: Tensor, bias: Tensor) -> Tensor:
    """``leaky_relu(x * scale + noise * strength + bias)`` without a copy of ``x`` for each operation.

    Args:
        x: (b, c, h, w).
        scale: (b, c).
        noise: (b, 1, h, w); no derivative is taken by it.
        strength: ().
        bias: (c,).
    """
    activated: Tensor = _StyledActivation.apply(x, scale, noise, strength, bias)
    return activated


class _StyledActivation(torch.autograd.Function):
    """The first derivatives are made of differentiable operations, which gives the second ones."""

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, noise: Tensor, strength: Tensor, bias: Tensor) -> Tensor:
        y = x * scale[:, :, None, None]
        y += noise * strength
        y += bias[:, None, None]
        F.leaky_relu_(y, LRELU_SLOPE)
        context.save_for_backward(x, scale, noise, y)
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, noise, y = context.saved_tensors
        gradient = _gate(gradient, y)
        by_x, by_scale, _, by_strength, by_bias = context.needs_input_grad
        return (
            gradient * scale[:, :, None, None] if by_x else None,
            channel_products(gradient, x) if by_scale else None,
            None,
            (gradient.sum(dim=1, keepdim=True) * noise).sum() if by_strength and are_weights_wanted() else None,
            gradient.sum(dim=(0, 2, 3)) if by_bias and are_weights_wanted() else None,
        )


def scale_channels(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` (b, c, h, w) times ``scale`` (b, c)."""
    scaled: Tensor = _ScaleChannels.apply(x, scale)
    return scaled


class _ScaleChannels(torch.autograd.Function):
    """Its derivative by ``scale`` is a sum of products, for which autograd would write the products first."""

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor) -> Tensor:
        context.save_for_backward(x, scale)
        return x * scale[:, :, None, None]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, scale = context.saved_tensors
        by_x, by_scale = context.needs_input_grad
        return scale_channels(gradient, scale) if by_x else None, channel_products(gradient, x) if by_scale else None


def channel_products(x: Tensor, y: Tensor) -> Tensor:
    """Sum over positions of ``x * y``, (b, c)."""
    summed: Tensor = _ChannelProducts.apply(x, y)
    return summed


class _ChannelProducts(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, y: Tensor) -> Tensor:
        context.save_for_backward(x, y)
        n_images = _images_of_a_piece(x)
        pieces = zip(x.split(n_images), y.split(n_images), strict=True)
        return torch.cat([torch.linalg.vecdot(a.flatten(2), b.flatten(2)) for a, b in pieces])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = context.saved_tensors
        by_x, by_y = context.needs_input_grad
        return scale_channels(y, gradient) if by_x else None, scale_channels(x, gradient) if by_y else None


def fir_taps(factor: int) -> tuple[int, ...]:
    """The triangle filter for a resampling by ``factor``, not normalised; for 2 it is [1, 3, 3, 1]."""
    rising = [2 * tap + 1 for tap in range(factor)]
    return (*rising, *reversed(rising))


def fir_norm(factors: Pair) -> int:
    """Sum of the filter over the axes it is applied to: what ``blur`` leaves to its caller to divide by."""
    return math.prod(2 * factor**2 for factor in factors if factor > 1)


def blur(x: Tensor, factors: Pair, padding: tuple[Pair, Pair]) -> Tensor:
    """Filter (b, c, h, w) with ``fir_taps`` along the axes whose factor is above 1, after zero padding there."""
    blurred: Tensor = _Blur.apply(x, factors, padding)
    return blurred


class _Blur(torch.autograd.Function):
    """The filter is symmetric, so its adjoint is itself with the complementary padding, to any order of derivative.

    Left to autograd, the second derivative of a depthwise convolution would loop over every channel.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, factors: Pair, padding: tuple[Pair, Pair]) -> Tensor:
        context.factors, context.padding = factors, padding
        (top, bottom), (left, right) = (
            pair if factor > 1 else (0, 0) for pair, factor in zip(padding, factors, strict=True)
        )
        if top != bottom or left != right or min(top, left) < 0:
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        n_channels = x.shape[1]
        taps = _fir(factors, x.dtype, x.device).expand(n_channels, -1, -1, -1)
        return F.conv2d(x, taps, padding=(top, left), groups=n_channels)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        padding = tuple(
            (2 * factor - 1 - before, 2 * factor - 1 - after)
            for factor, (before, after) in zip(context.factors, context.padding, strict=True)
        )
        return blur(gradient, context.factors, (padding[0], padding[1])), None, None


@lru_cache
def _fir(factors: Pair, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, kh, kw), of length 1 along an axis that is not filtered."""
    rows, columns = (
        torch.tensor(fir_taps(factor) if factor > 1 else (1,), dtype=dtype, device=device) for factor in factors
    )
    return torch.outer(rows, columns)[None, None]


def _images_of_a_piece(x: Tensor) -> int:
    """Images that a CPU filters at a time, so that what is between two sums stays in its cache; else all."""
    return max(1, PIECE_VALUES // max(1, x[0].numel())) if x.device.type == "cpu" else len(x)


def upsample(x: Tensor, factors: Pair) -> Tensor:
    """Zero insertion and FIR with the gain of ``factors``; (b, c, h, w) -> (b, c, h * f0, w * f1)."""
    gain = math.prod(factors) / fir_norm(factors)
    for axis, factor in ((2, factors[0]), (3, factors[1])):
        if factor > 1:
            zeros = [torch.zeros_like(x)] * (factor - 1)
            x = torch.stack([x, *zeros], dim=axis + 1).flatten(axis, axis + 1)
    before_after = tuple(((3 * factor - 1) // 2, factor // 2) for factor in factors)
    return blur(x, factors, (before_after[0], before_after[1])) * gain
