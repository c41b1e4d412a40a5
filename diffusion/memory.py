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

from diffusion.autoencoder import Autoencoder
from diffusion.blocks import Upsample, maybe_checkpointed
from diffusion.cost import META, meta_autoencoder, meta_denoiser
from diffusion.loss import build_discriminator
from diffusion.perceptual import build_perceptual, comparisons
from diffusion.settings import PERCEPTUAL, AutoencoderSettings, DenoiserSettings, Size

STATES = 5  # of each weight: itself, gradient, two moments of Adam, average
LARGEST_COPIES = 2  # of the largest tensor: work space of a convolution, input and output in another layout
LARGEST_CRITIC = 64  # feature maps of its first layer, as in diffusion.autoencoder_training
BASELINE_BYTES = 0.6 * 2**30


@dataclass(frozen=True)
class StepMemory:
    """Bytes of what a training computes for one image."""

    weights: float
    activations: float  # at the peak, with all that is on its way
    largest: float  # tensor

    @property
    def at_once(self) -> float:
        """Beside the weights, with work space."""
        return self.activations + LARGEST_COPIES * self.largest


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


def measured_step(network: nn.Module, inputs: tuple[Tensor, ...]) -> StepMemory:
    """Forward and backward pass of ``network`` on meta tensors; it has gradients already, as from a part before."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    known = [*network.parameters(), *(p.grad for p in learned if p.grad is not None), *network.buffers()]
    with _Counter(known) as counter:
        made = network(*inputs)
        losses = [tensor.float().square().mean() for tensor in (made if isinstance(made, tuple) else (made,))]
        torch.stack(losses).sum().backward()
    return StepMemory(_n_bytes(learned), float(counter.peak), float(counter.largest))


def _n_bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.untyped_storage().nbytes() for tensor in tensors))


@lru_cache(maxsize=256)
def denoiser_step(settings: DenoiserSettings, size: Size, precision: str) -> StepMemory:
    """Of one image of ``size``."""
    network, inputs = meta_denoiser(settings, size)
    if precision == "bf16":
        _as_autocast(network)
    return measured_step(network, inputs)


class _AutoencoderStep(nn.Module):
    """What an autoencoder's training computes for its loss; critic and perceptual network in float32."""

    def __init__(self, settings: AutoencoderSettings, autoencoder: Autoencoder, image_size: Size) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        with torch.device(META):
            n_base = min(LARGEST_CRITIC, 2 * settings.channels[0])
            has_critic = settings.adversarial_weight > 0
            self.critic = build_discriminator(settings.n_channels, image_size, n_base) if has_critic else None
        self.perceptual = _meta_perceptual() if settings.perceptual != "none" and settings.perceptual_weight else None

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        made, order = self.autoencoder(images, noise)
        made = made.float()
        terms = [(made - images).abs().mean(), order]
        if self.perceptual is not None:
            is_checkpointed = self.autoencoder.settings.checkpointing
            parts = comparisons(made, images, torch.Generator(), made.shape[1] if is_checkpointed else 1)
            for _, *pair in parts[:1] if is_checkpointed else parts:  # one after the other: one is as good as all
                terms.append(maybe_checkpointed(self.perceptual, is_checkpointed, *pair))
        if self.critic is not None:
            terms.append(self.critic(made)[-1])
        return tuple(terms)


@lru_cache(maxsize=1)
def _meta_perceptual() -> nn.Module | None:
    """Of the networks that may be chosen, the one that comes with the installation."""
    network = build_perceptual(PERCEPTUAL[0])
    return None if network is None else network.to(META)


@lru_cache(maxsize=256)
def autoencoder_step(settings: AutoencoderSettings, image_size: Size, precision: str) -> StepMemory:
    """Of one image of ``image_size``, with the critic and the perceptual network."""
    network, inputs = meta_autoencoder(settings, image_size)
    if precision == "bf16":
        _as_autocast(network)
    return measured_step(_AutoencoderStep(settings, network, image_size), inputs)


@lru_cache(maxsize=256)
def encoding(settings: AutoencoderSettings, image_size: Size, precision: str) -> StepMemory:
    """Of an image whose latent the denoiser is to learn; nothing is kept for a gradient."""
    network, (images, _) = meta_autoencoder(settings, image_size)
    if precision == "bf16":
        _as_autocast(network)
    with torch.no_grad(), _Counter(network.parameters()) as counter:
        network.moments(images)
    return StepMemory(_n_bytes(network.parameters()), float(counter.peak), float(counter.largest))


def denoiser_bytes(
    settings: DenoiserSettings,
    size: Size,
    precision: str,
    n_images: int,
    autoencoder: AutoencoderSettings | None = None,
    image_size: Size = (),
) -> float:
    """Peak memory of the denoiser's training with ``n_images`` of ``size`` at a time.

    ``autoencoder``: of a model in latents, for images of ``image_size``; an image is encoded before its latent is
    learned.
    """
    step = denoiser_step(settings, size, precision)
    if autoencoder is None:
        return _training_bytes(step, n_images)
    encoded = encoding(autoencoder, image_size, precision)
    return encoded.weights + max(
        _training_bytes(step, n_images),
        BASELINE_BYTES + STATES * step.weights + n_images * encoded.at_once,
    )


def autoencoder_bytes(settings: AutoencoderSettings, image_size: Size, precision: str, n_images: int) -> float:
    """Peak memory of the autoencoder's training with ``n_images`` of ``image_size`` at a time."""
    return _training_bytes(autoencoder_step(settings, image_size, precision), n_images)


def _training_bytes(step: StepMemory, n_images: int) -> float:
    # without activations, but with a copy of the weights: Adam's own step
    return BASELINE_BYTES + STATES * step.weights + max(n_images * step.at_once, step.weights)
