"""What one image costs a training, in operations and in memory, counted on the meta device.

There tensors have shapes and no values, and nothing is allocated. For the memory a step's forward and backward pass run
with each new storage counted from its first to its last use, so that kept activations, checkpointed blocks computed
again and gradients on their way are exactly those of the real step. bf16 is what ``torch.autocast`` makes of it on a
GPU: convolutions and products compute and keep bfloat16, norms and softmax float32. What is not measured, the device's
own libraries and their work space, is a constant and a margin.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from monai.networks.blocks import SABlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diffusion.autoencoder import Autoencoder
from diffusion.blocks import Upsample, maybe_checkpointed
from diffusion.denoiser import Denoiser
from diffusion.loss import build_discriminator
from diffusion.perceptual import build_perceptual, comparisons
from diffusion.settings import PERCEPTUAL, AutoencoderSettings, DenoiserSettings, DiffusionSettings, Size

META = "meta"
TRAINING_OVER_FORWARD = 3  # passes of a training step: forward, and backward at twice the cost
STATES = 5  # of each weight: itself, gradient, two moments of Adam, average
LARGEST_COPIES = 2  # of the largest tensor: work space of a convolution, input and output in another layout
LARGEST_CRITIC = 64  # feature maps of its first layer, as in diffusion.autoencoder_training
BASELINE_BYTES = 0.6 * 2**30


def meta_denoiser(settings: DenoiserSettings, size: Size, n_images: int = 1) -> tuple[Denoiser, tuple[Tensor, ...]]:
    """The network, and what its forward pass takes for ``n_images`` of ``size``; nothing is allocated."""
    with torch.device(META):
        network = Denoiser(settings)
        noisy, times = torch.zeros(n_images, settings.n_channels, *size), torch.zeros(n_images)
    return _without_flash(network), (noisy, times)


def meta_autoencoder(
    settings: AutoencoderSettings, image_size: Size, n_images: int = 1
) -> tuple[Autoencoder, tuple[Tensor, ...]]:
    """As ``meta_denoiser``, for images of ``image_size``."""
    with torch.device(META):
        network = Autoencoder(settings)
        images = torch.zeros(n_images, settings.n_channels, *image_size)
        noise = torch.zeros(n_images, settings.latent_channels, *settings.latent_size(image_size))
    return network, (images, noise)


def _without_flash(network: Denoiser) -> Denoiser:
    """Attention written out, on every machine: counted alike, and more memory than the fused one."""
    for module in network.modules():
        if isinstance(module, SABlock):
            module.use_flash_attention = False
    return network


@lru_cache(maxsize=256)
def denoiser_flop(settings: DenoiserSettings, size: Size) -> float:
    """Operations of one forward pass of one image; a multiplication and its addition are two."""
    return _flop(*meta_denoiser(settings, size))


@lru_cache(maxsize=256)
def autoencoder_flop(settings: AutoencoderSettings, image_size: Size) -> float:
    """The same for encoder and decoder together."""
    return _flop(*meta_autoencoder(settings, image_size))


def _flop(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops())


def training_flop(settings: DiffusionSettings) -> float:
    """Operations for one image of a training, both networks by their shares; a denoiser's latents are encoded first."""
    of_denoiser = TRAINING_OVER_FORWARD * denoiser_flop(settings.denoiser, settings.denoised_size)
    if settings.autoencoder is None or settings.config.autoencoder is None:
        return of_denoiser
    share = settings.config.autoencoder.kimg_share
    both_ways = autoencoder_flop(settings.autoencoder, settings.image_size)
    return share * TRAINING_OVER_FORWARD * both_ways + (1 - share) * (of_denoiser + both_ways / 2)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of what a training computes for one image."""

    weights: float
    activations: float  # at the peak, with all that is on its way
    largest: float  # tensor
    copies: float = 0.0  # of weights, in bfloat16

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


def _as_autocast(network: nn.Module) -> list[Tensor]:
    """Let its layers compute in what ``torch.autocast``, which knows no meta tensors, has them compute on a GPU.

    Returns the weights in bfloat16, which are there once however many images there are.
    """
    copies: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            weight = module.weight.to(torch.bfloat16)
            bias = None if module.bias is None else module.bias.to(torch.bfloat16)
            copies += [weight] if bias is None else [weight, bias]
            compute = F.linear if isinstance(module, nn.Linear) else module._conv_forward
            module.forward = partial(_in, torch.bfloat16, partial(compute, weight=weight, bias=bias))  # type: ignore[method-assign]
        elif isinstance(module, (nn.GroupNorm, Upsample)):
            module.forward = partial(_in, torch.float32, module.forward)  # type: ignore[method-assign]
    return copies


def _in(dtype: torch.dtype, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x.to(dtype))


def measured_step(network: nn.Module, inputs: tuple[Tensor, ...], copies: Sequence[Tensor] = ()) -> StepMemory:
    """Forward and backward pass of ``network`` on meta tensors; it has gradients already, as from a part before.

    ``copies``: of weights, which are there all the time.
    """
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    known = [*copies, *network.parameters(), *(p.grad for p in learned if p.grad is not None), *network.buffers()]
    with _Counter(known) as counter:
        made = network(*inputs)
        losses = [tensor.float().square().mean() for tensor in (made if isinstance(made, tuple) else (made,))]
        torch.stack(losses).sum().backward()
    return StepMemory(_n_bytes(learned), float(counter.peak), float(counter.largest), _n_bytes(copies))


def _n_bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.untyped_storage().nbytes() for tensor in tensors))


@lru_cache(maxsize=256)
def denoiser_step(settings: DenoiserSettings, size: Size, precision: str) -> StepMemory:
    """Of one image of ``size``."""
    network, inputs = meta_denoiser(settings, size)
    return measured_step(network, inputs, _as_autocast(network) if precision == "bf16" else ())


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
    copies = _as_autocast(network) if precision == "bf16" else []
    return measured_step(_AutoencoderStep(settings, network, image_size), inputs, copies)


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
    return BASELINE_BYTES + STATES * step.weights + max(step.copies + n_images * step.at_once, step.weights)


def estimated_bytes(settings: DiffusionSettings) -> dict[str, float]:
    """Peak memory of each training: ``denoiser`` and, if there is one, ``autoencoder``."""
    own, size, precision = settings.autoencoder, settings.image_size, settings.precision
    part = math.ceil(settings.batch_size / settings.n_accumulated)
    needed = denoiser_bytes(settings.denoiser, settings.denoised_size, precision, part, own, size)
    if own is None:
        return {"denoiser": needed}
    part = math.ceil(own.batch_size / own.n_accumulated)
    return {"autoencoder": autoencoder_bytes(own, size, precision, part), "denoiser": needed}
