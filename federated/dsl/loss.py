"""DSL's losses (spec section 18.2): vanilla GAN, L1 and perceptual, each a mean over the batch.

The paper's perceptual loss compares features of VGG-16, whose weights are a download. Without that file the features
are those of EfficientNet-lite0, whose ImageNet weights come with the installation: the nearest thing that is trained
on images and works offline (an image pyramid would repeat the L1 term; random features carry no notion of texture).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from features.efficientnet import load_efficientnet_lite0
from federated.dsl.model import PatchDiscriminator
from federated.dsl.settings import DslSettings

VGG16_LAYERS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3, relu4_3 of torchvision's ``features``
LITE0_BLOCKS = (0, 2, 4, 10)  # the last block at each of the strides 2, 4, 8 and 16
SMALLEST_ENERGY = 1e-8
Perceptual = Callable[[Tensor, Tensor], Tensor]


def discriminator_loss(
    network: PatchDiscriminator, masks: Tensor, fakes: Tensor, reals: Tensor, weight: float
) -> Tensor:
    """``weight * (BCE(D(m, fake), 0) + BCE(D(m, real), 1))``; no gradient reaches the fakes."""
    fake_logits, real_logits = network(masks, fakes.detach()), network(masks, reals)
    return weight * (F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean())


def generator_losses(
    network: PatchDiscriminator,
    perceptual: Perceptual,
    masks: Tensor,
    fakes: Tensor,
    reals: Tensor,
    settings: DslSettings,
) -> dict[str, Tensor]:
    """The weighted terms by name (``gan``, ``l1``, ``perceptual``); their sum is what the generator descends."""
    losses = {"gan": settings.weight_gan * F.softplus(-network(masks, fakes)).mean()}
    losses["l1"] = settings.weight_l1 * F.l1_loss(fakes, reals)
    if settings.weight_perceptual > 0:
        losses["perceptual"] = settings.weight_perceptual * perceptual(fakes, reals)
    return losses


def build_perceptual(vgg16_weights: str | None, device: str) -> Perceptual:
    """The perceptual loss: VGG-16's with torchvision's weights from a file, else EfficientNet-lite0's.

    Raises:
        InputError: a file that does not hold VGG-16's weights.
    """
    if vgg16_weights is None:
        return Lite0Perceptual().to(device)
    return Vgg16Perceptual(Path(vgg16_weights)).to(device)


class Vgg16Perceptual(nn.Module):
    """Mean over four layers of the mean squared difference of features; no ImageNet normalisation, as in DSL."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.layers = _vgg16_layers(weights).eval().requires_grad_(False)

    def forward(self, fakes: Tensor, reals: Tensor) -> Tensor:
        """(n, channels, height, width) in [-1, 1] twice -> a scalar."""
        pairs = zip(self._features(fakes), self._features(reals), strict=True)
        return torch.stack([F.mse_loss(fake, real) for fake, real in pairs]).mean()

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        features = as_rgb(images)
        for index, layer in enumerate(self.layers):
            features = layer(features)
            if index in VGG16_LAYERS:
                yield features


class Lite0Perceptual(nn.Module):
    """The same on EfficientNet-lite0; each layer's difference over the energy of the real image's features there,
    as the scale of these features has nothing to do with VGG's."""

    def __init__(self) -> None:
        super().__init__()
        network = load_efficientnet_lite0().eval().requires_grad_(False)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.ModuleList(list(network._blocks)[: max(LITE0_BLOCKS) + 1])

    def train(self, mode: bool = True) -> Lite0Perceptual:
        """Stays in evaluation mode: batch statistics would couple the images of a batch."""
        return super().train(False)

    def forward(self, fakes: Tensor, reals: Tensor) -> Tensor:
        """(n, channels, height, width) in [-1, 1] twice -> a scalar."""
        with torch.no_grad():
            of_reals = list(self._features(reals))
        terms = []
        for fake, real in zip(self._features(fakes), of_reals, strict=True):
            energy = real.square().mean(dim=(1, 2, 3)).clamp_min(SMALLEST_ENERGY)
            terms.append(((fake - real).square().mean(dim=(1, 2, 3)) / energy).mean())
        return torch.stack(terms).mean()

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        features = self.stem(as_rgb(images))
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in LITE0_BLOCKS:
                yield features


def as_rgb(images: Tensor) -> Tensor:
    """Colour as it is; grey repeated to three channels; of other counts every channel becomes a grey image."""
    if images.shape[1] == 3:
        return images
    return images.reshape(-1, 1, *images.shape[-2:]).expand(-1, 3, -1, -1)


def clip_and_noise(gradient: Tensor, clip_norm: float, noise_multiplier: float, draws: torch.Generator) -> Tensor:
    """Bound each image's part (n, ...) of a batch-mean gradient and add Gaussian noise (Abadi et al. 2016).

    An image's own loss counts 1 / n in the mean, so its part is bounded by ``clip_norm / n``; the noise's standard
    deviation is ``noise_multiplier`` times that bound.
    """
    bound = clip_norm / len(gradient)
    norms = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    clipped = gradient * (bound / norms).clamp_max(1.0)[:, None, None, None]
    noise = torch.randn(gradient.shape, generator=draws).to(gradient.device)
    return clipped + noise_multiplier * bound * noise


def _vgg16_layers(weights: Path) -> nn.Sequential:
    from torchvision.models import vgg16

    fix = "give torchvision's vgg16 file (vgg16-397923af.pth, or saved as .safetensors), or set it to null"
    try:
        if weights.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(weights)
        else:
            tensors = torch.load(weights, map_location="cpu", weights_only=True)
        with torch.device("meta"):  # no memory for the classifier, which is most of VGG-16
            kept = vgg16(weights=None).features[: max(VGG16_LAYERS) + 1]
        kept.load_state_dict({name: tensors[f"features.{name}"] for name in kept.state_dict()}, assign=True)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"the file does not hold VGG-16's weights ({error})", where=weights, fix=fix) from error
    for layer in kept:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return kept
