"""One training step of StyleGAN2: generator, path length, discriminator, R1, average of the weights.

Karras et al. 2020, section 3.2 and appendix B; DiffAugment (Zhao et al. 2020) in place of adaptive augmentation. D is
the discriminator's logit, T the augmentation, f(z) the styles w, g(w) an image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.seeds import derive_seed
from gan.augment import augment, augment_by
from gan.functions import gradients_of_activations
from gan.layers import ResampledConv
from gan.model import Discriminator, GeneratorNetwork, on_device
from gan.privacy import Mechanism
from gan.private_batches import UnitImages
from gan.secret import SecretStream
from gan.settings import GanSettings
from training.batch_shard import SINGLE_PROCESS, BatchShard
from training.training_state import load_state, state_to_tensors

LARGEST_GRADIENT = 1e5

Measured = dict[str, Tensor]  # scalars on the device; reading one waits for it
Draws = Callable[[str], torch.Generator]  # random numbers of one step for a purpose


@dataclass(frozen=True)
class PrivateReals:
    """The real images of a step under differential privacy, and what is done to their gradient."""

    mechanism: Mechanism
    units: Sequence[UnitImages]
    noise: SecretStream


class TrainStep:
    """What a training updates, and how; the random numbers of a phase come from the generator given to it.

    With several processes each holds the whole networks and computes its ``shard`` of every batch; all draw the same
    numbers for the whole batch, so that a step is that of one process (up to the order of sums).
    """

    def __init__(
        self, settings: GanSettings, seed: int, device: torch.device, shard: BatchShard = SINGLE_PROCESS
    ) -> None:
        config = settings.config
        self.settings, self.device, self.shard = settings, device, shard
        if device.type == "cuda":  # TF32's 10 bits for float32 products, and the fastest algorithm for each size
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "initialise"))
            self.generator = GeneratorNetwork(settings).to(device).to(memory_format=torch.channels_last)
            self.discriminator = Discriminator(settings).to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        # bfloat16 has the range of float32: no gradient need be scaled, no activation clamped as in half precision.
        # Weights, mapping, demodulation, logits and optimisers keep float32, and so does the average that is sampled.
        for module in (*self.generator.modules(), *self.discriminator.modules()):
            if isinstance(module, ResampledConv):
                module.low_precision = torch.bfloat16 if config.precision == "bf16" else None
        self.mean_path_length = torch.zeros((), device=device)
        self.optimizers = {
            "generator": _adam(self.generator, config.learning_rate, config.path_length_interval),
            "discriminator": _adam(self.discriminator, config.learning_rate, config.r1_interval),
        }

    def update(
        self,
        step: int,
        reals: Tensor | PrivateReals,
        draws: Draws,
    ) -> Measured:
        """The whole step: at most four phases, each with its own step of Adam, then the average of the weights.

        Args:
            step: counted from 0; the two regularisations come every few steps ("lazy", appendix B).
            reals: (b, channels, height, width) in [-1, 1], the whole batch; or what differential privacy makes of it.

        Returns:
            What was measured, by name.
        """
        config = self.settings.config
        measured = self.generator_main(draws("generator"))
        if step % config.path_length_interval == 0:
            measured |= self.path_length(draws("path length"))
        is_penalised = step % config.r1_interval == 0
        if isinstance(reals, PrivateReals):
            measured |= self.private_discriminator_main(reals, draws("discriminator"))
            if is_penalised:
                measured |= self.r2(draws("r1"))
        else:
            reals = reals.to(self.device)
            measured |= self.discriminator_main(reals, draws("discriminator"))
            if is_penalised:
                measured |= self.r1(reals, draws("r1"))
        self.average_weights()
        return measured

    def generator_main(self, draws: torch.Generator) -> Measured:
        """Gmain: ``softplus(-D(T(g(f(z)))))``, the non-saturating loss (Goodfellow et al. 2014) on fakes."""
        self.discriminator.requires_grad_(False)
        fakes, _ = self._fakes(draws, self.settings.config.batch_size)
        loss = loss_as_real(self.discriminator(self._augmented(fakes, draws)))
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return {"loss_g": self.shard.mean(loss.detach())}

    def path_length(self, draws: torch.Generator) -> Measured:
        """Greg: ``weight * (|J_w^T y| - a)^2`` (equation 4) on half a batch, times the interval between two.

        J_w is the Jacobian of the image by the styles, y an image of N(0, 1), a the running mean of the lengths. The
        paper's a is a number that is set, not a function of the weights: no derivative is taken through it, also not
        through the share (``path_length_decay``) that these lengths have in it.
        """
        config = self.settings.config
        n_images = max(1, config.batch_size // 2)
        fakes, styles = self._fakes(draws, n_images)
        shape = (n_images, self.settings.n_channels, *self.settings.image_size_px)
        y = self.shard.of(torch.randn(shape, generator=on_device(draws, self.device), device=self.device))
        lengths = path_lengths(fakes, styles, y)
        mean = self.shard.mean(lengths.detach().mean())
        self.mean_path_length = self.mean_path_length.lerp(mean, config.path_length_decay)
        penalty = (lengths - self.mean_path_length).square().mean() * config.path_length_weight
        self._descend("generator", penalty * config.path_length_interval)
        return {"path_length": mean}

    def discriminator_main(self, reals: Tensor, draws: torch.Generator) -> Measured:
        """Dmain: ``softplus(D(T(fake))) + softplus(-D(T(real)))``; fakes first, so that one graph is held at a time."""
        loss_of_fakes, fake_logits = self._differentiate_fakes(draws)
        real_logits = self.discriminator(self._augmented(self.shard.of(reals), draws))
        loss_of_reals = loss_as_real(real_logits)
        self._descend("discriminator", loss_of_reals)
        loss = loss_of_fakes + loss_of_reals.detach()
        measured = {"loss_d": loss, "real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
        return {name: self.shard.mean(value.detach()) for name, value in measured.items()}

    def private_discriminator_main(self, reals: PrivateReals, draws: torch.Generator) -> Measured:
        """Dmain under differential privacy: the gradient of the real images is what the mechanism makes of it.

        Only numbers of the fakes are measured. The gradient of the fakes needs no clipping: it follows from weights
        that are private already, and is the same whatever the real images are. ``draws`` are for the fakes alone.
        """
        loss_of_fakes, fake_logits = self._differentiate_fakes(draws)
        parameters = list(self.discriminator.parameters())
        gradients = reals.mechanism.gradient(self._loss_of_unit, reals.units, parameters, reals.noise)
        torch._foreach_add_([parameter.grad for parameter in parameters if parameter.grad is not None], gradients)
        self._follow_gradients("discriminator")
        return {"loss_d_fake": loss_of_fakes, "fake_logit": fake_logits.detach().mean()}

    def _loss_of_unit(self, unit: UnitImages) -> Tensor:
        """Mean over its images; each is augmented by its own numbers, so that nobody else's images change anything."""
        augmented = augment_by(unit.images.to(self.device), self.settings.config.augment, unit.numbers)
        return loss_as_real(self.discriminator(augmented))

    def r1(self, reals: Tensor, draws: torch.Generator) -> Measured:
        """Dreg: ``gamma / 2 * |grad_x D(T(x))|^2`` at real x (R1, Mescheder et al. 2018), times the interval."""
        return {"r1": self._penalise_gradients(self.shard.of(reals).clone(), draws)}

    def r2(self, draws: torch.Generator) -> Measured:
        """The same penalty at fakes instead (R2), which costs no privacy: R1 would need a second noisy gradient.

        Either one gives local convergence (Mescheder, Geiger, Nowozin 2018, theorem 4.1).
        """
        with torch.no_grad():
            fakes, _ = self._fakes(draws, self.settings.config.batch_size)
        return {"r2": self._penalise_gradients(fakes, draws)}

    @torch.no_grad()
    def average_weights(self) -> None:
        """Move the average towards the generator, so that it halves its distance over ``ema_kimg``."""
        decay = 0.5 ** (self.settings.config.batch_size / (self.settings.ema_kimg * 1000))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by name."""
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed training needs to go on bit for bit; its random numbers follow from the step."""
        state = state_to_tensors(self.modules(), self.optimizers)
        return {**state, "mean_path_length": self.mean_path_length}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state that ``tensors`` described."""
        load_state(self.modules(), self.optimizers, tensors)
        self.mean_path_length = tensors["mean_path_length"].to(self.device)

    def _fakes(self, draws: torch.Generator, n_images: int) -> tuple[Tensor, Tensor]:
        """This process's images of a batch of ``n_images`` fresh ones, and their styles."""
        latents, cutoff = self.generator.draw_latents(n_images, draws)
        styles = self.generator.mixed_styles(self.shard.of(latents.to(self.device), dim=1), cutoff)
        noise = [self.shard.of(maps) for maps in self.generator.draw_noise(n_images, on_device(draws, self.device))]
        return self.generator.synthesise(styles, noise), styles

    def _differentiate_fakes(self, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """The fakes' half of Dmain: its loss, whose gradient is left at the weights, and the logits."""
        with torch.no_grad():
            fakes, _ = self._fakes(draws, self.settings.config.batch_size)
        logits = self.discriminator(self._augmented(fakes, draws))
        loss = loss_as_fake(logits)
        loss.backward()
        return loss.detach(), logits

    def _penalise_gradients(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """One step on the penalty of this process's ``images``; returns the mean over all."""
        config = self.settings.config
        images.requires_grad_(True)
        penalty = r1_penalty(self.discriminator, images, self._augmented(images, draws))
        self._descend("discriminator", penalty * (config.r1_gamma / 2 * config.r1_interval))
        return self.shard.mean(penalty.detach())

    def _augmented(self, images: Tensor, draws: torch.Generator) -> Tensor:
        return augment(images, self.settings.config.augment, draws, self.shard)

    def _descend(self, name: str, loss: Tensor) -> None:
        """Follow the gradient of ``loss`` and of what was differentiated before; frees the gradients."""
        loss.backward()
        self._follow_gradients(name)

    def _follow_gradients(self, name: str) -> None:
        optimizer = self.optimizers[name]
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.shard.average(gradients)
        for gradient in gradients:
            gradient.nan_to_num_(nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def loss_as_real(logits: Tensor) -> Tensor:
    """Logistic loss of images to be called real: the discriminator's on real ones, the generator's on its own."""
    return F.softplus(-logits).mean()


def loss_as_fake(logits: Tensor) -> Tensor:
    """Logistic loss of images to be called fake: the discriminator's on the generator's."""
    return F.softplus(logits).mean()


def r1_penalty(discriminator: Discriminator, images: Tensor, augmented: Tensor) -> Tensor:
    """Squared gradient norm of the logits by the images before augmentation, mean over images (R1; of fakes: R2).

    ``augmented`` must be computed from ``images``, which must require gradients.
    """
    with gradients_of_activations():
        (gradient,) = torch.autograd.grad(discriminator(augmented).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, styles: Tensor, y: Tensor) -> Tensor:
    """Length of the gradient of a random projection of the image by the styles, one per image (equation 4).

    ``y``: N(0, 1), in the shape of ``images``.
    """
    height, width = images.shape[-2:]
    projection = (images * y).sum() / math.sqrt(height * width)
    with gradients_of_activations():
        (gradient,) = torch.autograd.grad(projection, styles, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def _adam(network: nn.Module, learning_rate: float, interval: int) -> torch.optim.Adam:
    """Adam with the correction for a lazy regularisation every ``interval`` steps (appendix B).

    Fused: all parameters in one pass.
    """
    correction = interval / (interval + 1)
    betas = (0.0**correction, 0.99**correction)
    return torch.optim.Adam(network.parameters(), lr=learning_rate * correction, betas=betas, eps=1e-8, fused=True)
