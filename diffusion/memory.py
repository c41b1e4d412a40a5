"""Memory of a training, measured before it: every tensor of a step on the meta device, which allocates none.

A step's forward and backward pass run with each new storage counted from its first to its last use, so that kept
activations, checkpointed blocks computed again and gradients on their way are exactly those of the real step. bf16 is
what ``torch.autocast`` makes of it on a GPU: convolutions and products compute and keep bfloat16, norms and softmax
float32. What is not measured, the device's own libraries and their work space, is a constant and a margin.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion.blocks import Upsample
from diffusion.cost import meta_autoencoder, meta_denoiser
from diffusion.settings import AutoencoderSettings, DenoiserSettings, Size

STATES = 5  # of each weight: itself, gradient, two moments of Adam, average
LARGEST_COPIES = 2  # of the largest tensor: work space of a convolution, input and output in another layout
BASELINE_BYTES = 0.6 * 2**30


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step of one image."""

    weights: float
    activations: float  # at the peak, with all that is on its way
    largest: float  # tensor


class _Counter(TorchDispatchMode):
    """Bytes of the storages that are alive and not ``known`` before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive: dict[int, int] = {}
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self.known or key in self.alive:
            return
        self.alive[key] = n_bytes
        self.now += n_bytes
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, n_bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def _as_autocast(network: nn.Module) -> None:
    """Let its layers compute in what ``torch.autocast``, which knows no meta tensors, has them compute on a GPU."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            _replace_forward(module, partial(_low_convolution, module))
        elif isinstance(module, nn.Linear):
            _replace_forward(module, partial(_low_linear, module))
        elif isinstance(module, (nn.GroupNorm, Upsample)):
            _replace_forward(module, partial(_in_full, module.forward))


def _replace_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    module.forward = forward


def _low_convolution(module: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    return module._conv_forward(_low(x), _low(module.weight), None if module.bias is None else _low(module.bias))


def _low_linear(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(_low(x), _low(module.weight), None if module.bias is None else _low(module.bias))


def _in_full(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x.float())


def _low(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


def measured_step(network: nn.Module, inputs: tuple[Tensor, ...], precision: str) -> StepMemory:
    """Forward and backward pass of ``network`` on meta tensors; it has gradients already, as from a part before."""
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    known = [*parameters, *(p.grad for p in parameters if p.grad is not None), *network.buffers()]
    if precision == "bf16":
        _as_autocast(network)
    with _Counter(known) as counter:
        made = network(*inputs)
        losses = [tensor.float().square().mean() for tensor in (made if isinstance(made, tuple) else (made,))]
        torch.stack(losses).sum().backward()
    n_weight_bytes = sum(p.untyped_storage().nbytes() for p in parameters)
    return StepMemory(float(n_weight_bytes), float(counter.peak), float(counter.largest))


@lru_cache(maxsize=256)
def denoiser_step(settings: DenoiserSettings, size: Size, precision: str) -> StepMemory:
    """Of one image of ``size``."""
    return measured_step(*meta_denoiser(settings, size), precision)


@lru_cache(maxsize=256)
def autoencoder_step(settings: AutoencoderSettings, image_size: Size, precision: str) -> StepMemory:
    """Of one image of ``image_size``."""
    return measured_step(*meta_autoencoder(settings, image_size), precision)


def training_bytes(step: StepMemory, n_images: int) -> float:
    """Peak memory of a training that computes ``n_images`` at a time."""
    at_once = n_images * (step.activations + LARGEST_COPIES * step.largest)
    return BASELINE_BYTES + STATES * step.weights + max(at_once, step.weights)  # Adam's step needs a copy


def denoiser_bytes(settings: DenoiserSettings, size: Size, precision: str, n_images: int) -> float:
    """Peak memory of the denoiser's training with ``n_images`` of ``size`` at a time."""
    return training_bytes(denoiser_step(settings, size, precision), n_images)


def autoencoder_bytes(settings: AutoencoderSettings, image_size: Size, precision: str, n_images: int) -> float:
    """Peak memory of the autoencoder's training with ``n_images`` of ``image_size`` at a time."""
    return training_bytes(autoencoder_step(settings, image_size, precision), n_images)
