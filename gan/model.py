"""The plan-shaped StyleGAN2: skip generator and residual discriminator (spec section 10.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.plan import Pair
from gan.functions import EPSILON, LRELU_GAIN, leaky_relu_, styled_activation, upsample
from gan.layers import Linear, ModulatedConv, ResampledConv, minibatch_deviation
from gan.settings import GanSettings

MAPPING_LR_MULTIPLIER = 0.01
BRANCH_GAIN = math.sqrt(0.5)  # of the two branches of a residual block, which keeps the variance


class MappingNetwork(nn.Module):
    """z -> w: normalisation and fully connected layers at a hundredth of the learning rate."""

    def __init__(self, z_dim: int, w_dim: int, n_layers: int) -> None:
        super().__init__()
        widths = [z_dim, *[w_dim] * n_layers]
        self.layers = nn.ModuleList(
            Linear(n_in, n_out, lr_multiplier=MAPPING_LR_MULTIPLIER) for n_in, n_out in itertools.pairwise(widths)
        )

    def forward(self, z: Tensor) -> Tensor:
        """(b, z_dim) -> (b, w_dim)."""
        w = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + EPSILON)
        for layer in self.layers:
            w = leaky_relu_(layer(w, gain=LRELU_GAIN))
        return w


class StyledConv(nn.Module):
    """Modulated convolution, noise of learned strength, bias, leaky ReLU."""

    def __init__(self, n_in: int, n_out: int, kernel: Pair, w_dim: int, up: Pair = (1, 1)) -> None:
        super().__init__()
        self.conv = ModulatedConv(n_in, n_out, kernel, w_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """``noise``: (b, 1, height, width) of the output."""
        styles = self.conv.affine(w)
        x = self.conv.not_demodulated(x, styles)
        parts = (self.conv.norms(styles) * LRELU_GAIN, noise, self.noise_strength * LRELU_GAIN, self.bias * LRELU_GAIN)
        scale, noise, strength, bias = (part.to(x.dtype) for part in parts)
        return styled_activation(x, scale, noise, strength, bias)


class ToImage(nn.Module):
    """1x1 modulated convolution to image channels, without demodulation."""

    def __init__(self, n_in: int, n_channels: int, w_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(n_in, n_channels, (1, 1), w_dim)
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(b, n_in, h, w) -> (b, n_channels, h, w) in the precision of the weights, in which the images are added.

        For so few outputs the weights of every image are small, and scaling them spares a scaled copy of ``x``.
        """
        weights = self.conv.conv.weight[None, :, :, 0, 0] * (self.conv.affine(w) * self.conv.conv.gain)[:, None]
        image = torch.baddbmm(self.bias[None, :, None].to(x.dtype), weights.to(x.dtype), x.flatten(2))
        return image.unflatten(2, x.shape[2:]).to(self.bias.dtype)


class SynthesisBlock(nn.Module):
    """Upsampling convolution, convolution and image output of one stage; the bottleneck has one convolution."""

    def __init__(self, n_in: int, n_out: int, kernel: Pair, up: Pair, n_channels: int, w_dim: int) -> None:
        super().__init__()
        self.up = up
        self.is_bottleneck = n_in == 0
        if not self.is_bottleneck:
            self.conv0 = StyledConv(n_in, n_out, kernel, w_dim, up)
        self.conv1 = StyledConv(n_out, n_out, kernel, w_dim)
        self.to_image = ToImage(n_out, n_channels, w_dim)

    @property
    def n_convs(self) -> int:
        """Convolutions that take a style and a noise map each."""
        return 1 if self.is_bottleneck else 2

    def forward(
        self, x: Tensor, image: Tensor | None, ws: Sequence[Tensor], noise: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """``ws``: one for each convolution and one for the image output."""
        if not self.is_bottleneck:
            x = self.conv0(x, ws[0], noise[0])
        x = self.conv1(x, ws[-2], noise[-1])
        output = self.to_image(x, ws[-1])
        return x, output if image is None else self.enlarge(image) + output

    def enlarge(self, image: Tensor) -> Tensor:
        """The image of the stage below at this block's size."""
        return upsample(image, self.up)


class GeneratorNetwork(nn.Module):
    """Latents to images in about [-1, 1]; blocks from the plan's bottleneck up to its patch size."""

    def __init__(self, settings: GanSettings) -> None:
        super().__init__()
        config, channels, sizes = settings.config, settings.channels, settings.resolutions
        self.settings = settings
        self.mapping = MappingNetwork(config.z_dim, config.w_dim, config.mapping_layers)
        self.constant = nn.Parameter(torch.randn(channels[-1], *sizes[-1]))
        blocks = [SynthesisBlock(0, channels[-1], settings.kernel_sizes[-1], (1, 1), settings.n_channels, config.w_dim)]
        for stage in reversed(range(len(sizes) - 1)):
            kernel, up = settings.kernel_sizes[stage], settings.strides[stage + 1]
            n_in, n_out = channels[stage + 1], channels[stage]
            blocks.append(SynthesisBlock(n_in, n_out, kernel, up, settings.n_channels, config.w_dim))
        self.blocks = nn.ModuleList(blocks)
        self.n_styles = 2 * len(sizes)

    def noise_sizes(self) -> list[Pair]:
        """Size of each noise map, in the order the layers take them."""
        sizes = list(reversed(self.settings.resolutions))
        return [size for index, size in enumerate(sizes) for _ in range(1 if index == 0 else 2)]

    def draw_noise(self, n_images: int, generator: torch.Generator) -> list[Tensor]:
        """Fresh N(0, 1) noise maps, one (n_images, 1, h, w) a layer, on the generator's device."""
        device = generator.device
        return [torch.randn(n_images, 1, *size, generator=generator, device=device) for size in self.noise_sizes()]

    def draw_latents(self, n_images: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Latents (2, n_images, z_dim) and the layer from which on the second one's style is used.

        With the style-mixing probability that layer is drawn, one for the batch; else it is ``n_styles``, that is none.
        """
        config = self.settings.config
        latents = torch.randn(2, n_images, config.z_dim, generator=generator)
        is_mixed = float(torch.rand((), generator=generator)) < config.style_mixing
        cutoff = int(torch.randint(1, self.n_styles, (), generator=generator)) if is_mixed else self.n_styles
        return latents, cutoff

    def mixed_styles(self, latents: Tensor, cutoff: int) -> Tensor:
        """``latents`` (2, b, z_dim) -> styles (b, n_styles, w_dim), those from ``cutoff`` on of the second latent."""
        first = self.mapping(latents[0])[:, None].expand(-1, cutoff, -1)
        if cutoff == self.n_styles:
            return first
        second = self.mapping(latents[1])[:, None].expand(-1, self.n_styles - cutoff, -1)
        return torch.cat([first, second], dim=1)

    def synthesise(self, ws: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """``ws`` (b, n_styles, w_dim) and noise maps -> images (b, channels, height, width)."""
        x = self.constant.expand(len(ws), -1, -1, -1)
        image: Tensor | None = None
        style, map_index = 0, 0
        for block in self.blocks:
            assert isinstance(block, SynthesisBlock)
            styles = [ws[:, style + offset] for offset in range(block.n_convs + 1)]
            x, image = block(x, image, styles, noise[map_index : map_index + block.n_convs])
            style, map_index = style + block.n_convs, map_index + block.n_convs
        assert image is not None
        return image

    def forward(self, z: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """``z`` (b, z_dim) without style mixing."""
        ws = self.mapping(z)[:, None].expand(-1, self.n_styles, -1)
        return self.synthesise(ws, noise)


class ResidualBlock(nn.Module):
    """Two convolutions, the second downsampling, beside a 1x1 skip; both branches scaled by sqrt(1/2)."""

    def __init__(self, n_in: int, n_out: int, kernel: Pair, down: Pair) -> None:
        super().__init__()
        self.conv0 = ResampledConv(n_in, n_in, (3, 3))
        self.bias0 = nn.Parameter(torch.zeros(n_in))
        self.conv1 = ResampledConv(n_in, n_out, kernel, down=down)
        self.bias1 = nn.Parameter(torch.zeros(n_out))
        self.skip = ResampledConv(n_in, n_out, (1, 1), down=down)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, h, w) -> (b, n_out, h / down, w / down)."""
        y = leaky_relu_(self.conv0(x, self.bias0, LRELU_GAIN))
        y = leaky_relu_(self.conv1(y, self.bias1, LRELU_GAIN * BRANCH_GAIN))
        return y + self.skip(x, gain=BRANCH_GAIN)


class Discriminator(nn.Module):
    """Images to logits; residual blocks along the plan's strides, then minibatch deviation and two layers."""

    def __init__(self, settings: GanSettings) -> None:
        super().__init__()
        channels, sizes = settings.channels, settings.resolutions
        self.from_image = ResampledConv(settings.n_channels, channels[0], (1, 1))
        self.from_image_bias = nn.Parameter(torch.zeros(channels[0]))
        self.blocks = nn.ModuleList(
            ResidualBlock(
                channels[stage], channels[stage + 1], settings.kernel_sizes[stage + 1], settings.strides[stage + 1]
            )
            for stage in range(len(sizes) - 1)
        )
        self.group_size = settings.config.minibatch_std_group
        self.conv = ResampledConv(channels[-1] + 1, channels[-1], (3, 3))
        self.bias = nn.Parameter(torch.zeros(channels[-1]))
        self.hidden = Linear(channels[-1] * sizes[-1][0] * sizes[-1][1], channels[-1])
        self.logit = Linear(channels[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, height, width) -> (b,)."""
        x = leaky_relu_(self.from_image(images, self.from_image_bias, LRELU_GAIN))
        for block in self.blocks:
            x = block(x)
        x = minibatch_deviation(x.to(self.bias.dtype), self.group_size)
        x = leaky_relu_(self.conv(x, self.bias, LRELU_GAIN)).to(self.bias.dtype)
        logits: Tensor = self.logit(leaky_relu_(self.hidden(x.flatten(1), gain=LRELU_GAIN)))
        return logits[:, 0]


def on_device(draws: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator of large tensors that follows from ``draws``: itself on the CPU, else one on ``device``.

    Noise maps and projections are nearly all numbers of a step; drawn on the CPU they would take longer than a GPU
    takes for the step.
    """
    if device.type == "cpu":
        return draws
    seed = int(torch.randint(2**62, (), generator=draws, device=draws.device))
    return torch.Generator(device).manual_seed(seed)
