"""DSL's networks: a ResNet generator from masks to images and a PatchGAN discriminator (spec section 18.1).

pix2pix (Isola et al. 2017) with the generator of Johnson et al. 2016. Images lie in [-1, 1], masks are one-hot over the
foreground labels. Sizes need no common divisor: inputs are padded to a multiple of 4 and outputs cropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_SIDE_PX = 24  # below it the discriminator's last instance norm would see a single pixel
DIVISOR = 4
INITIAL_STD = 0.02


class SeededDropout(nn.Module):
    """Dropout that is always on and draws each image's mask from that image's own random numbers."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.draws: Sequence[torch.Generator] = ()

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, height, width) -> the same, scaled so that the mean stays."""
        if self.probability == 0:
            return features
        kept = torch.empty_like(features)
        for image, draws in zip(kept, self.draws, strict=True):
            image.bernoulli_(1 - self.probability, generator=draws)
        return features * kept / (1 - self.probability)


class ResidualBlock(nn.Module):
    """Two reflect-padded 3 x 3 convolutions with dropout between them."""

    def __init__(self, channels: int, dropout: SeededDropout) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, channels, 3),
            dropout,
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, height, width) -> the same shape."""
        residual: Tensor = self.body(features)
        return features + residual


class MaskGenerator(nn.Module):
    """Masks (n, labels, height, width) to images (n, channels, height, width) in [-1, 1]; dropout is the only noise."""

    def __init__(
        self, n_labels: int, n_channels: int, base_channels: int = 64, n_blocks: int = 9, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.dropout = SeededDropout(dropout)
        widths = [base_channels, 2 * base_channels, 4 * base_channels]
        self.layers = nn.Sequential(
            *_convolution(n_labels, widths[0], 7),
            *_downscaling(widths[0], widths[1]),
            *_downscaling(widths[1], widths[2]),
            *(ResidualBlock(widths[2], self.dropout) for _ in range(n_blocks)),
            *_upscaling(widths[2], widths[1]),
            *_upscaling(widths[1], widths[0]),
            nn.Conv2d(widths[0], n_channels, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )
        self.apply(_initialise)

    def forward(self, masks: Tensor, seeds: Sequence[int]) -> Tensor:
        """One seed a mask; an image depends on its own mask and seed alone."""
        self.dropout.draws = [torch.Generator(masks.device).manual_seed(seed) for seed in seeds]
        height, width = masks.shape[-2:]
        padded = F.pad(masks, (0, -width % DIVISOR, 0, -height % DIVISOR), mode="replicate")
        images: Tensor = self.layers(padded)
        return images[..., :height, :width]


class PatchDiscriminator(nn.Module):
    """Masks and images, concatenated, to a map of logits; each sees 70 x 70 px."""

    def __init__(self, n_labels: int, n_channels: int, base_channels: int = 64) -> None:
        super().__init__()
        widths = [base_channels * factor for factor in (1, 2, 4, 8)]
        layers: list[nn.Module] = [nn.Conv2d(n_labels + n_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for n_in, n_out, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(n_in, n_out, 4, stride, 1), nn.InstanceNorm2d(n_out), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.apply(_initialise)

    def forward(self, masks: Tensor, images: Tensor) -> Tensor:
        """(n, labels, height, width) and (n, channels, height, width) -> (n, 1, patch rows, patch columns)."""
        logits: Tensor = self.layers(torch.cat([masks, images], dim=1))
        return logits


def one_hot(labels: Tensor, n_labels: int) -> Tensor:
    """Label maps (n, height, width), 0 is background, to float (n, n_labels, height, width).

    A binary mask stays a mask of 0 and 1; the original passed several organs as label / 4 in one channel, as though
    organ 2 lay between organs 1 and 3.
    """
    ids = torch.arange(1, n_labels + 1, device=labels.device)
    return (labels[:, None] == ids[:, None, None]).float()


def place(maps: Tensor, placements: Sequence[Sequence[int]], size_px: tuple[int, int]) -> Tensor:
    """Cut (n, channels, height, width) to ``size_px`` at each map's (top, left), then flip rows and columns or not.

    Hub and sites do the same to a mask and its image, so that they stay a pair.
    """
    height, width = size_px
    placed = []
    for image, (top, left, flip_rows, flip_columns) in zip(maps, placements, strict=True):
        cut = image[:, top : top + height, left : left + width]
        placed.append(cut.flip([axis for axis, flip in ((1, flip_rows), (2, flip_columns)) if flip]))
    return torch.stack(placed)


def _convolution(n_in: int, n_out: int, kernel: int) -> list[nn.Module]:
    return _activated(nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, padding_mode="reflect"), n_out)


def _downscaling(n_in: int, n_out: int) -> list[nn.Module]:
    return _activated(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), n_out)


def _upscaling(n_in: int, n_out: int) -> list[nn.Module]:
    return _activated(nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=1), n_out)


def _activated(convolution: nn.Module, n_out: int) -> list[nn.Module]:
    return [convolution, nn.InstanceNorm2d(n_out), nn.ReLU()]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, INITIAL_STD)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
