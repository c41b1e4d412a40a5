"""In which arithmetic the convolutions run; weights, mapping, demodulation, logits and optimisers stay in float32."""

from __future__ import annotations

import torch
from torch import nn

from gan.layers import ResampledConv

LOW_PRECISION: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


def set_precision(network: nn.Module, precision: str) -> None:
    """Let the convolutions of ``network``, and what is between them, compute in ``fp32`` or ``bf16``.

    bfloat16 has the range of float32, so that no gradient needs scaling and no activation clamping, as half precision
    does.
    """
    for module in network.modules():
        if isinstance(module, ResampledConv):
            module.low_precision = LOW_PRECISION[precision]


def use_tensor_cores(device: torch.device) -> None:
    """On a GPU, float32 products and convolutions with TF32's 10 bits, and the fastest algorithm for each size.

    Settings of the process, made where a training begins; on a CPU nothing changes.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
