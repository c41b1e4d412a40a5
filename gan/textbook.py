"""The networks computed as the papers write them, operation by operation: slow, obvious, and with the same weights.

What ``gan.benchmark`` measures against, and what the tests hold the fast formulation to. A scaled weight tensor is
made for every image to get its norms, the filter is a depthwise convolution with the outer product of its taps, and
bias, activation and gain are operations of their own, as in the published reference operations (spec section 10.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.plan import Pair
from gan.functions import EPSILON, LRELU_GAIN, LRELU_SLOPE, fir_norm, fir_taps
from gan.layers import Linear, ResampledConv, minibatch_deviation
from gan.model import Discriminator, MappingNetwork, ResidualBlock, StyledConv, SynthesisBlock, ToImage


def as_textbook(network: nn.Module) -> nn.Module:
    """Let every layer of ``network`` compute as the papers write it, in place; parameters stay what they are."""
    for module in network.modules():
        for slow in SLOW:
            if type(module) is slow.__base__:
                module.__class__ = slow
    return network


def activate(x: Tensor, bias: Tensor) -> Tensor:
    """Bias, leaky ReLU, gain; ``x`` (b, c, ...)."""
    return F.leaky_relu(x + bias.reshape(1, -1, *[1] * (x.dim() - 2)), LRELU_SLOPE) * LRELU_GAIN


def fir(x: Tensor, factors: Pair, padding: tuple[Pair, Pair], gain: float = 1.0) -> Tensor:
    """Depthwise convolution with the normalised triangle filter, along the axes whose factor is above 1."""
    (top, bottom), (left, right) = (pad if factor > 1 else (0, 0) for pad, factor in zip(padding, factors, strict=True))
    x = F.pad(x, (left, right, top, bottom))
    rows, columns = (x.new_tensor(fir_taps(factor) if factor > 1 else (1.0,)) for factor in factors)
    kernel = torch.outer(rows, columns) * (gain / fir_norm(factors))
    return F.conv2d(x, kernel.expand(x.shape[1], 1, *kernel.shape), groups=x.shape[1])


def upsample(x: Tensor, factors: Pair) -> Tensor:
    """Zero insertion, then the filter with the gain of ``factors``."""
    n_images, n_channels, height, width = x.shape
    spread = x.new_zeros(n_images, n_channels, height, factors[0], width, factors[1])
    spread[:, :, :, 0, :, 0] = x
    spread = spread.reshape(n_images, n_channels, height * factors[0], width * factors[1])
    padding = tuple(((3 * factor - 1) // 2, factor // 2) for factor in factors)
    return fir(spread, factors, (padding[0], padding[1]), float(math.prod(factors)))


class TextbookMapping(MappingNetwork):
    """z -> w."""

    def forward(self, z: Tensor) -> Tensor:
        """(b, z_dim) -> (b, w_dim)."""
        w = z / (z.square().mean(dim=1, keepdim=True) + EPSILON).sqrt()
        for layer in self.layers:
            assert isinstance(layer, Linear)
            w = activate(F.linear(w, layer.weight * layer.weight_gain), layer.bias * layer.lr_multiplier)
        return w


class TextbookConv(ResampledConv):
    """Equalised weights; transposed convolution then filter, or filter then strided convolution."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(b, n_in, h, w) -> (b, n_out, h * up / down, w * up / down)."""
        assert bias is None
        weight = weight * self.gain
        if self.up != (1, 1):
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=self.up, padding=self.still)
            return fir(x, self.up, (self.up_padding(0), self.up_padding(1)), float(math.prod(self.up)))
        if self.down != (1, 1):
            x = fir(x, self.down, (self.down_padding(0), self.down_padding(1)))
        return F.conv2d(x, weight, stride=self.down, padding=self.still)


class TextbookStyledConv(StyledConv):
    """Equations 1 and 3 on a weight tensor for every image, then noise and activation."""

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """``noise``: (b, 1, height, width) of the output."""
        conv = self.conv.conv
        styles = self.conv.affine(w)
        scaled = (conv.weight * conv.gain)[None] * styles[:, None, :, None, None]
        norms = (scaled.square().sum(dim=(2, 3, 4)) + EPSILON).rsqrt()
        x = conv.convolve(x * styles[:, :, None, None], conv.weight) * norms[:, :, None, None]
        return activate(x + noise * self.noise_strength, self.bias)


class TextbookToImage(ToImage):
    """Modulated, not demodulated."""

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(b, n_in, h, w) -> (b, n_channels, h, w)."""
        styles = self.conv.affine(w)
        image = self.conv.conv.convolve(x * styles[:, :, None, None], self.conv.conv.weight)
        return image + self.bias[:, None, None]


class TextbookSynthesisBlock(SynthesisBlock):
    """As the fast one, with the slow filter for the image of the stage below."""

    def enlarge(self, image: Tensor) -> Tensor:
        """To this block's size."""
        return upsample(image, self.up)


class TextbookResidualBlock(ResidualBlock):
    """Both branches, each times sqrt(1/2)."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, h, w) -> (b, n_out, h / down, w / down)."""
        y = activate(self.conv0.convolve(x, self.conv0.weight), self.bias0)
        y = activate(self.conv1.convolve(y, self.conv1.weight), self.bias1)
        return y * math.sqrt(0.5) + self.skip.convolve(x, self.skip.weight) * math.sqrt(0.5)


class TextbookDiscriminator(Discriminator):
    """First and last layers; the blocks are above."""

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, height, width) -> (b,)."""
        x = activate(self.from_image.convolve(images, self.from_image.weight), self.from_image_bias)
        for block in self.blocks:
            x = block(x)
        x = minibatch_deviation(x, self.group_size)
        x = activate(self.conv.convolve(x, self.conv.weight), self.bias)
        x = activate(F.linear(x.flatten(1), self.hidden.weight * self.hidden.weight_gain), self.hidden.bias)
        logits: Tensor = self.logit(x)
        return logits[:, 0]


SLOW: tuple[type[nn.Module], ...] = (
    TextbookMapping,
    TextbookConv,
    TextbookStyledConv,
    TextbookToImage,
    TextbookSynthesisBlock,
    TextbookResidualBlock,
    TextbookDiscriminator,
)
