"""How different two images look to a network trained on photographs: without a download, for any number of channels.

``efficientnet_lite0``: the weights come with the installation; features of its first blocks are compared as LPIPS
compares them (Zhang et al. 2018: unit length at each position, mean squared difference), without its learned weights.
It takes RGB: three channels go in as they are, other numbers one by one, each repeated. Of volumes it compares slices
along every axis (the specification's fake 3D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.blocks import maybe_checkpointed
from features.efficientnet import IMAGENET_MEAN, IMAGENET_STD, load_efficientnet_lite0

LAST_BLOCKS = (0, 2, 4)  # whose outputs are compared: strides 2, 4 and 8
SMALLEST_PX = 32  # smaller images are enlarged
SLICE_SHARE = 0.2  # of a volume's slices along each axis
EPS = 1e-8


def build_perceptual(name: str) -> nn.Module | None:
    """The network ``name``, frozen; None for ``none``."""
    return None if name == "none" else _EarlyFeatures().eval().requires_grad_(False)


def perceptual_distance(
    network: nn.Module, made: Tensor, real: Tensor, draws: torch.Generator, is_checkpointed: bool = False
) -> Tensor:
    """One number for two batches (b, channels, height, width) or (b, channels, depth, height, width) in [-1, 1].

    ``draws`` (on the CPU) chooses a volume's slices: the same for every image of the batch. ``is_checkpointed``: part
    by part, each computed again for its gradient; what is kept of all of a volume's slices would be the largest part of
    a training's memory.
    """
    parts = comparisons(made, real, draws, made.shape[1] if is_checkpointed else 1)
    return torch.stack([share * maybe_checkpointed(network, is_checkpointed, *pair) for share, *pair in parts]).sum()


def comparisons(made: Tensor, real: Tensor, draws: torch.Generator, n_parts: int) -> list[tuple[float, Tensor, Tensor]]:
    """What the network compares, (n, 3, height, width) each, and its share of the distance.

    Of volumes, slices along each axis; images and the slices of an axis in at most ``n_parts`` parts.
    """
    if made.ndim == 4:
        pairs = [(made, real)]
    else:
        pairs = []
        for axis in (2, 3, 4):
            n_slices = made.shape[axis]
            chosen = torch.randperm(n_slices, generator=draws)[: max(1, round(SLICE_SHARE * n_slices))].to(made.device)
            of_made, of_real = (x.index_select(axis, chosen).movedim(axis, 1).flatten(0, 1) for x in (made, real))
            pairs.append((of_made, of_real))
    found = []
    for pair in pairs:
        made_rgb, real_rgb = (_as_rgb(x) for x in pair)
        for parts in zip(made_rgb.chunk(n_parts), real_rgb.chunk(n_parts), strict=True):
            found.append((len(parts[0]) / len(made_rgb) / len(pairs), *parts))
    return found


def _as_rgb(images: Tensor) -> Tensor:
    """(b, channels, h, w) to (b', 3, h, w), at least SMALLEST_PX along both sides."""
    if images.shape[1] != 3:
        images = images.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    factor = max(1, -(-SMALLEST_PX // min(images.shape[-2:])))
    return F.interpolate(images, scale_factor=float(factor), mode="nearest") if factor > 1 else images


class _EarlyFeatures(nn.Module):
    """Mean squared difference of EfficientNet-lite0's early features."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        network = load_efficientnet_lite0()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.ModuleList(list(network._blocks)[: LAST_BLOCKS[-1] + 1])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Of (b, 3, h, w) in [-1, 1], each of unit length over its channels."""
        x = self.stem(((images + 1) / 2 - self.mean) / self.std)
        found = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in LAST_BLOCKS:
                found.append(x / (x.square().sum(1, keepdim=True) + EPS).sqrt())
        return found

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(real)
        pairs = zip(self.features(made), wanted, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()
