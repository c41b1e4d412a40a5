"""Parts of both networks: MONAI's residual and attention blocks, and changes of size that differ between axes.

MONAI halves every axis; nnU-Net's plans halve some, with kernels that are flat along a coarse axis. Padding follows
from the kernel, so that an axis of stride 1 keeps its size whatever its kernel (the original padded by 1 always).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.blocks import Convolution, SpatialAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffusion.settings import Size

MOST_GROUPS, SMALLEST_GROUP = 32, 4
NORM_EPS = 1e-6


def n_groups(base_channels: int) -> int:
    """Groups of the norms of a network whose widths are multiples of ``base_channels``; each has 4 channels or more."""
    most = max(1, min(MOST_GROUPS, base_channels // SMALLEST_GROUP))
    return max(n for n in range(1, most + 1) if base_channels % n == 0)


def convolution(n_in: int, n_out: int, kernel: Size, stride: Size | None = None) -> nn.Module:
    """A convolution alone, padded so that stride 1 keeps the size; (b, n_in, ...) to (b, n_out, ...)."""
    stride = stride or (1,) * len(kernel)
    padding = tuple((k - 1) // 2 for k in kernel)
    made: nn.Module = Convolution(
        len(kernel), n_in, n_out, strides=stride, kernel_size=kernel, padding=padding, conv_only=True
    )
    return made


def attention(n_axes: int, n_channels: int, groups: int) -> nn.Module:
    """Self-attention over all positions with one head."""
    made: nn.Module = SpatialAttentionBlock(
        n_axes, n_channels, n_channels, groups, NORM_EPS, use_flash_attention=torch.cuda.is_available()
    )
    return made


class Upsample(nn.Module):
    """Each voxel repeated along each axis by its stride, then a convolution."""

    def __init__(self, n_channels: int, stride: Size, kernel: Size) -> None:
        super().__init__()
        self.stride, self.conv = stride, convolution(n_channels, n_channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, ...) to (b, n, larger ...)."""
        if math.prod(self.stride) > 1:
            x = F.interpolate(x, scale_factor=tuple(float(s) for s in self.stride), mode="nearest")
        made: Tensor = self.conv(x)
        return made


def last_layers(n_in: int, n_out: int, kernel: Size, groups: int, is_zero: bool) -> nn.Sequential:
    """Norm, SiLU and a convolution to the output; ``is_zero``: the output is 0 before training."""
    final = convolution(n_in, n_out, kernel)
    if is_zero:
        for parameter in final.parameters():
            nn.init.zeros_(parameter)
    return nn.Sequential(nn.GroupNorm(groups, n_in, NORM_EPS), nn.SiLU(), final)


def maybe_checkpointed(block: Callable[..., Any], is_checkpointed: bool, *inputs: Tensor) -> Tensor:
    """``block(*inputs)``; if ``is_checkpointed``, its activations are computed again for the gradient."""
    if is_checkpointed and torch.is_grad_enabled():
        made: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return made
    result: Tensor = block(*inputs)
    return result
