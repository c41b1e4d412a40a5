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
