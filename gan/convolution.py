"""Convolution as three bilinear operations, each other's derivatives to any order, and each computed where fastest.

For x, a smaller y and weights w: ``correlate`` (x, w) -> y is the strided convolution, ``spread`` (y, w) -> x its
transpose, ``weight_products`` (x, y) -> w what both have as derivative by the weights. Activations are kept
channels-last, in which a pixel's channels are a row and a tap of the kernel is a matrix product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from common.plan import Pair
from gan.functions import are_weights_wanted

N_CHANNELS_FOR_PRODUCTS = 128  # of x: for fewer, the matrices are too narrow


@dataclass(frozen=True)
class Window:
    """How a kernel moves: its step and the zeros around x, as (row, column)."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    def size_of_x(self, size_y: Pair, kernel: Pair) -> Pair:
        """Smallest size that correlates to ``size_y``."""
        height, width = (
            (n - 1) * step - 2 * pad + k
            for n, k, step, pad in zip(size_y, kernel, self.stride, self.padding, strict=True)
        )
        return height, width


def correlate(x: Tensor, weight: Tensor, window: Window, bias: Tensor | None = None) -> Tensor:
    """``x`` (b, n_x, h, w) and ``weight`` (n_y, n_x, kh, kw) -> (b, n_y, h', w'), plus ``bias`` (n_y,)."""
    y: Tensor = _Correlate.apply(_channels_last(x), weight, window, bias)
    return y


def spread(y: Tensor, weight: Tensor, window: Window, size_x: Pair) -> Tensor:
    """``y`` (b, n_y, h', w') and ``weight`` (n_y, n_x, kh, kw) -> (b, n_x, *size_x), the transpose of ``correlate``."""
    x: Tensor = _Spread.apply(_channels_last(y), weight, window, size_x)
    return x


def weight_products(x: Tensor, y: Tensor, window: Window, kernel: Pair) -> Tensor:
    """``x`` (b, n_x, h, w) and ``y`` (b, n_y, h', w') -> (n_y, n_x, *kernel)."""
    weight: Tensor = _WeightProducts.apply(_channels_last(x), _channels_last(y), window, kernel)
    return weight


class _Correlate(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, window: Window, bias: Tensor | None) -> Tensor:
        context.save_for_backward(x, weight)
        context.window = window
        return F.conv2d(x, _channels_last(weight), bias, stride=window.stride, padding=window.padding)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        by_x, by_weight, _, by_bias = context.needs_input_grad
        return (
            spread(gradient, weight, context.window, _size(x)) if by_x else None,
            weight_products(x, gradient, context.window, _size(weight)) if by_weight and are_weights_wanted() else None,
            None,
            gradient.sum(dim=(0, 2, 3)) if by_bias and are_weights_wanted() else None,
        )


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, y: Tensor, weight: Tensor, window: Window, size_x: Pair) -> Tensor:
        context.save_for_backward(y, weight)
        context.window = window
        if _is_for_products(y) and window.stride != (1, 1):
            return _spread_by_products(y, weight, window, size_x)
        smallest = window.size_of_x(_size(y), _size(weight))
        left_over = (size_x[0] - smallest[0], size_x[1] - smallest[1])
        return F.conv_transpose2d(
            y, _channels_last(weight), stride=window.stride, padding=window.padding, output_padding=left_over
        )

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, weight = context.saved_tensors
        by_y, by_weight, _, _ = context.needs_input_grad
        return (
            correlate(gradient, weight, context.window) if by_y else None,
            weight_products(gradient, y, context.window, _size(weight)) if by_weight and are_weights_wanted() else None,
            None,
            None,
        )


class _WeightProducts(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, y: Tensor, window: Window, kernel: Pair) -> Tensor:
        context.save_for_backward(x, y)
        context.window = window
        if _is_for_products(x):
            return _weights_by_products(x, y, window, kernel)
        shape = (y.shape[1], x.shape[1], *kernel)
        return conv2d_weight(x, shape, y, stride=window.stride, padding=window.padding)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = context.saved_tensors
        by_x, by_y, _, _ = context.needs_input_grad
        return (
            spread(y, gradient, context.window, _size(x)) if by_x else None,
            correlate(x, gradient, context.window) if by_y else None,
            None,
            None,
        )


def _is_for_products(x: Tensor) -> bool:
    """A CPU multiplies float32 matrices at its peak; its strided and its weights' convolutions reach half of that."""
    return x.device.type == "cpu" and x.dtype != torch.bfloat16 and x.shape[1] >= N_CHANNELS_FOR_PRODUCTS


def _weights_by_products(x: Tensor, y: Tensor, window: Window, kernel: Pair) -> Tensor:
    weight = x.new_empty(*kernel, y.shape[1], x.shape[1])
    rows_y = y.permute(0, 2, 3, 1).flatten(0, 2).t()  # (n_y, b h' w')
    for (row, column), tap in _taps(_padded(x, window), _size(y), window, kernel):
        torch.mm(rows_y, tap.flatten(0, 2), out=weight[row, column])
    return weight.permute(2, 3, 0, 1)


def _spread_by_products(y: Tensor, weight: Tensor, window: Window, size_x: Pair) -> Tensor:
    (pad_h, pad_w), n_x = window.padding, weight.shape[1]
    padded = y.new_zeros(len(y), size_x[0] + 2 * pad_h, size_x[1] + 2 * pad_w, n_x).permute(0, 3, 1, 2)
    rows_y, product = y.permute(0, 2, 3, 1).flatten(0, 2), y.new_empty(len(y), *_size(y), n_x)
    for (row, column), tap in _taps(padded, _size(y), window, _size(weight)):
        torch.mm(rows_y, weight[:, :, row, column], out=product.flatten(0, 2))
        tap += product
    return padded[:, :, pad_h : pad_h + size_x[0], pad_w : pad_w + size_x[1]]


def _taps(x: Tensor, size_y: Pair, window: Window, kernel: Pair) -> Iterator[tuple[Pair, Tensor]]:
    """For each position in the kernel, the pixels of padded ``x`` under it: a view (b, h', w', n_x)."""
    pixels = x.permute(0, 2, 3, 1)
    for row, column in itertools.product(range(kernel[0]), range(kernel[1])):
        rows = slice(row, row + (size_y[0] - 1) * window.stride[0] + 1, window.stride[0])
        columns = slice(column, column + (size_y[1] - 1) * window.stride[1] + 1, window.stride[1])
        yield (row, column), pixels[:, rows, columns]


def _padded(x: Tensor, window: Window) -> Tensor:
    (pad_h, pad_w) = window.padding
    return F.pad(x, (pad_w, pad_w, pad_h, pad_h)) if pad_h or pad_w else x


def _channels_last(x: Tensor) -> Tensor:
    """Outside of the operations: they must save what they were given, or second derivatives would miss it."""
    return x.contiguous(memory_format=torch.channels_last)


def _size(x: Tensor) -> Pair:
    return x.shape[2], x.shape[3]
