"""Layers of StyleGAN2 on plans with a stride and a kernel per axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.plan import Pair
from gan.convolution import Window, correlate, spread
from gan.functions import EPSILON, blur, fir_norm, scale_channels


class Linear(nn.Module):
    """Fully connected layer with equalised learning rate (progressive GAN, section 4.1)."""

    def __init__(self, n_in: int, n_out: int, *, lr_multiplier: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((n_out,), bias / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(n_in)
        self.lr_multiplier = lr_multiplier

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(b, n_in) -> (b, n_out), times ``gain``."""
        return F.linear(x, self.weight * (self.weight_gain * gain), self.bias * (self.lr_multiplier * gain))


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
        self.low_precision: torch.dtype | None = None  # to compute in, where it is not that of the weights
        factors = up if up != (1, 1) else down
        self.is_resampled = factors != (1, 1)
        # zero padding of the convolution itself: an axis that is not resampled keeps its size
        self.still = _half(kernel[0], factors[0]), _half(kernel[1], factors[1])
        # what FIR and resampling leave to multiply: the filter below is not normalised
        self.resampling_gain = math.prod(up) / fir_norm(factors) if self.is_resampled else 1.0

    def forward(self, x: Tensor, bias: Tensor | None = None, gain: float = 1.0) -> Tensor:
        """(b, n_in, h, w) -> (b, n_out, h * up / down, w * up / down); the result and ``bias`` times ``gain``."""
        weight = self.weight * (self.gain * self.resampling_gain * gain)
        return self.convolve(x, weight, None if bias is None else bias * gain)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """With these weights instead, and without ``resampling_gain``; a bias is for what is not enlarged."""
        dtype = self.low_precision or weight.dtype
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if self.up != (1, 1):
            assert bias is None
            window = Window(self.up, self.still)
            x = spread(x, weight.transpose(0, 1), window, window.size_of_x((x.shape[2], x.shape[3]), self.kernel))
            return blur(x, self.up, (self.up_padding(0), self.up_padding(1)))
        if self.down != (1, 1):
            x = blur(x, self.down, (self.down_padding(0), self.down_padding(1)))
        return correlate(x, weight, Window(self.down, self.still), bias)

    def up_padding(self, axis: int) -> Pair:
        """On an axis of factor f the transposed convolution gives f (n - 1) + k; FIR padding brings it to f n."""
        factor, kernel = self.up[axis], self.kernel[axis]
        total = factor - kernel + 2 * factor - 1  # wanted f n, have f (n - 1) + k, the filter takes 2 f - 1
        return (total + 1) // 2, total // 2

    def down_padding(self, axis: int) -> Pair:
        """On an axis of factor f the filtered signal has n - f + k samples; the strided convolution gives n / f."""
        factor, kernel = self.down[axis], self.kernel[axis]
        total = kernel - factor + 2 * factor - 1
        return (total + 1) // 2, total // 2


def _half(kernel: int, factor: int) -> int:
    return kernel // 2 if factor == 1 else 0


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled per image, and what demodulates it (StyleGAN2, equations 1 to 3).

    Scaling inputs and outputs equals scaling the weights of every image. The norms of the scaled weights come from one
    matrix product; materialising the weights per image is what made the original slow.
    """

    def __init__(self, n_in: int, n_out: int, kernel: Pair, w_dim: int, *, up: Pair = (1, 1)) -> None:
        super().__init__()
        self.conv = ResampledConv(n_in, n_out, kernel, up=up)
        self.affine = Linear(w_dim, n_in, bias=1.0)

    def not_demodulated(self, x: Tensor, styles: Tensor) -> Tensor:
        """The convolution with the weights as they are stored: ``norms`` holds every gain."""
        return self.conv.convolve(scale_channels(x, styles.to(x.dtype)), self.conv.weight)

    def norms(self, styles: Tensor) -> Tensor:
        """(b, n_in) -> (b, n_out): what ``not_demodulated`` must be multiplied with.

        The gain of the equalised learning rate cancels but for the epsilon under the root.
        """
        squared = self.conv.weight.square().sum(dim=(2, 3))  # (n_out, n_in)
        norms = torch.rsqrt(styles.square() @ squared.t() + EPSILON / self.conv.gain**2)
        return norms * self.conv.resampling_gain


def minibatch_deviation(x: Tensor, group_size: int) -> Tensor:
    """Append one channel: the standard deviation over groups of images, averaged (progressive GAN, section 3)."""
    n_images, _, height, width = x.shape
    size = min(group_size, n_images)
    while n_images % size:
        size -= 1
    groups = x.reshape(size, n_images // size, *x.shape[1:])
    deviation = (groups.var(dim=0, unbiased=False) + EPSILON).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, height, width)], dim=1)
