"""Layers of StyleGAN2 on plans with a stride and a kernel per axis; plain autograd, twice differentiable."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.plan import Pair

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
EPSILON = 1e-8


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, scaled to keep the variance (StyleGAN2, appendix B)."""
    return F.leaky_relu(x, LRELU_SLOPE) * LRELU_GAIN


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

    Left to autograd, every shifted sum would fill and copy a tensor of zeros on the way back; a depthwise convolution's
    double backward would loop over every channel.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, factors: Pair, padding: tuple[Pair, Pair]) -> Tensor:
        context.factors, context.padding = factors, padding
        (top, bottom), (left, right) = (
            pair if factor > 1 else (0, 0) for pair, factor in zip(padding, factors, strict=True)
        )
        x = F.pad(x, (left, right, top, bottom))
        for axis, factor in ((2, factors[0]), (3, factors[1])):
            if factor > 1:
                # the triangle is a box of 2 and two boxes of the factor, so sums do it: no multiplication
                for length in (2, factor, factor):
                    x = _box(x, axis, length)
        return x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        padding = tuple(
            (2 * factor - 1 - before, 2 * factor - 1 - after)
            for factor, (before, after) in zip(context.factors, context.padding, strict=True)
        )
        return blur(gradient, context.factors, (padding[0], padding[1])), None, None


def _box(x: Tensor, axis: int, length: int) -> Tensor:
    size = x.shape[axis] - length + 1
    total = x.narrow(axis, 0, size) + x.narrow(axis, 1, size)
    for shift in range(2, length):
        total += x.narrow(axis, shift, size)
    return total


def upsample(x: Tensor, factors: Pair) -> Tensor:
    """Zero insertion and FIR with the gain of ``factors``; (b, c, h, w) -> (b, c, h * f0, w * f1)."""
    gain = math.prod(factors) / fir_norm(factors)
    for axis, factor in ((2, factors[0]), (3, factors[1])):
        if factor > 1:
            zeros = [torch.zeros_like(x)] * (factor - 1)
            x = torch.stack([x, *zeros], dim=axis + 1).flatten(axis, axis + 1)
    before_after = tuple(((3 * factor - 1) // 2, factor // 2) for factor in factors)
    return blur(x, factors, (before_after[0], before_after[1])) * gain


class Linear(nn.Module):
    """Fully connected layer with equalised learning rate (progressive GAN, section 4.1)."""

    def __init__(self, n_in: int, n_out: int, *, lr_multiplier: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((n_out,), bias / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(n_in)
        self.lr_multiplier = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in) -> (b, n_out)."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.lr_multiplier)


class ResampledConv(nn.Module):
    """Convolution with equalised learning rate and FIR resampling by a factor per axis, up or down or neither.

    Up: transposed convolution, then FIR. Down: FIR, then strided convolution (StyleGAN2, section 3). An axis whose
    factor is 1 is not filtered (D8).
    """

    def __init__(self, n_in: int, n_out: int, kernel: Pair, *, up: Pair = (1, 1), down: Pair = (1, 1)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, *kernel))
        self.gain = 1 / math.sqrt(n_in * kernel[0] * kernel[1])
        self.kernel, self.up, self.down = kernel, up, down

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, h, w) -> (b, n_out, h * up / down, w * up / down)."""
        if self.up != (1, 1):
            return self._upsampled(x, self.weight * (self.gain * math.prod(self.up) / fir_norm(self.up)))
        if self.down != (1, 1):
            return self._downsampled(x, self.weight * (self.gain / fir_norm(self.down)))
        return F.conv2d(x, self.weight * self.gain, padding=(self.kernel[0] // 2, self.kernel[1] // 2))

    def _upsampled(self, x: Tensor, weight: Tensor) -> Tensor:
        """On an axis of factor f the transposed convolution gives f (n - 1) + k; FIR padding brings it to f n."""
        still = tuple(k // 2 if factor == 1 else 0 for k, factor in zip(self.kernel, self.up, strict=True))
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=self.up, padding=still)
        return blur(x, self.up, (self._up_padding(0), self._up_padding(1)))

    def _up_padding(self, axis: int) -> Pair:
        factor, kernel = self.up[axis], self.kernel[axis]
        total = factor - kernel + 2 * factor - 1  # wanted f n, have f (n - 1) + k, the filter takes 2 f - 1
        return (total + 1) // 2, total // 2

    def _downsampled(self, x: Tensor, weight: Tensor) -> Tensor:
        """On an axis of factor f the filtered signal has n - f + k samples; the strided convolution gives n / f."""
        x = blur(x, self.down, (self._down_padding(0), self._down_padding(1)))
        still = tuple(k // 2 if factor == 1 else 0 for k, factor in zip(self.kernel, self.down, strict=True))
        return F.conv2d(x, weight, stride=self.down, padding=still)

    def _down_padding(self, axis: int) -> Pair:
        factor, kernel = self.down[axis], self.kernel[axis]
        total = kernel - factor + 2 * factor - 1
        return (total + 1) // 2, total // 2


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled per image, with optional demodulation (StyleGAN2, equations 1 to 3).

    Scaling inputs and outputs equals scaling the weights of every image. The norms of the scaled weights come from one
    matrix product; materialising the weights per image is what made the original slow.
    """

    def __init__(
        self, n_in: int, n_out: int, kernel: Pair, w_dim: int, *, up: Pair = (1, 1), demodulate: bool = True
    ) -> None:
        super().__init__()
        self.conv = ResampledConv(n_in, n_out, kernel, up=up)
        self.affine = Linear(w_dim, n_in, bias=1.0)
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """``x`` (b, n_in, h, w), ``w`` (b, w_dim)."""
        styles = self.affine(w)
        x = self.conv(x * styles[:, :, None, None])
        if not self.demodulate:
            return x
        squared = (self.conv.weight * self.conv.gain).square().sum(dim=(2, 3))  # (n_out, n_in)
        norms = torch.rsqrt(styles.square() @ squared.t() + EPSILON)
        return x * norms[:, :, None, None]


def minibatch_deviation(x: Tensor, group_size: int) -> Tensor:
    """Append one channel: the standard deviation over groups of images, averaged (progressive GAN, section 3)."""
    n_images, _, height, width = x.shape
    size = min(group_size, n_images)
    while n_images % size:
        size -= 1
    groups = x.reshape(size, n_images // size, *x.shape[1:])
    deviation = (groups.var(dim=0, unbiased=False) + EPSILON).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, height, width)], dim=1)
