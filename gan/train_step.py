"""The networks, their optimisers and the four phases of a training step (StyleGAN2, section 3.2 and appendix B)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from common.seeds import derive_seed
from gan.augment import augment
from gan.draws import draw_latents, draw_noise, on_device
from gan.loss import loss_as_fake, loss_as_real, path_lengths, r1_penalty
from gan.model import Discriminator, GeneratorNetwork
from gan.precision import set_precision, use_tensor_cores
from gan.privacy import Mechanism
from gan.settings import GanSettings
from training.batch_shard import SINGLE_PROCESS, BatchShard

LARGEST_GRADIENT = 1e5

Measured = dict[str, Tensor]  # scalars on the device; reading one waits for it


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
        use_tensor_cores(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "initialise"))
            self.generator = GeneratorNetwork(settings).to(device).to(memory_format=torch.channels_last)
            self.discriminator = Discriminator(settings).to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        set_precision(self.generator, config.precision)  # the average, from which images are taken, keeps float32
        set_precision(self.discriminator, config.precision)
        self.mean_path_length = torch.zeros((), device=device)
        self.optimizers = {
            "generator": _adam(self.generator, config.learning_rate, config.path_length_interval),
            "discriminator": _adam(self.discriminator, config.learning_rate, config.r1_interval),
        }

    def generator_main(self, draws: torch.Generator) -> Measured:
        """Gmain: the non-saturating loss on one batch of fakes."""
        self.discriminator.requires_grad_(False)
        fakes, _ = self._fakes(draws, self.settings.config.batch_size)
        loss = loss_as_real(self.discriminator(self._augmented(fakes, draws)))
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return {"loss_g": self.shard.mean(loss.detach())}

    def path_length(self, draws: torch.Generator) -> Measured:
        """Greg: path lengths of half a batch pulled to their running mean (equation 4), times the interval."""
        config = self.settings.config
        n_images = max(1, config.batch_size // 2)
        fakes, styles = self._fakes(draws, n_images)
        lengths = path_lengths(fakes, styles, self._projection(n_images, draws))
        mean = self.shard.mean(lengths.detach().mean())
        self.mean_path_length = self.mean_path_length.lerp(mean, config.path_length_decay)
        penalty = (lengths - self.mean_path_length).square().mean() * config.path_length_weight
        self._descend("generator", penalty * config.path_length_interval)
        return {"path_length": mean}

    def discriminator_main(self, reals: Tensor, draws: torch.Generator) -> Measured:
        """Dmain: the logistic loss on a batch of fakes, then on one of real images; one graph is held at a time."""
        loss_of_fakes, fake_logits = self._differentiate_fakes(draws)
        real_logits = self.discriminator(self._augmented(self.shard.of(reals), draws))
        loss_of_reals = loss_as_real(real_logits)
        self._descend("discriminator", loss_of_reals)
        loss = loss_of_fakes + loss_of_reals.detach()
        measured = {"loss_d": loss, "real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
        return {name: self.shard.mean(value.detach()) for name, value in measured.items()}

    def private_discriminator_main(
        self, reals: Tensor, draws: torch.Generator, mechanism: Mechanism, secret_draws: torch.Generator
    ) -> Measured:
        """Dmain under differential privacy: the real images' half as ``mechanism`` gives it.

        Only numbers of the fakes are measured. Their half needs no clipping: by weights that are private already, it
        is the same whatever the real images are.
        """
        loss_of_fakes, fake_logits = self._differentiate_fakes(draws)
        parameters = list(self.discriminator.parameters())
        gradients = mechanism.gradient(
            lambda image: loss_as_real(self.discriminator(image)),
            self._augmented(reals, draws),
            parameters,
            on_device(secret_draws, self.device),
        )
        torch._foreach_add_([parameter.grad for parameter in parameters if parameter.grad is not None], gradients)
        self._follow_gradients("discriminator")
        return {"loss_d_fake": loss_of_fakes, "fake_logit": fake_logits.detach().mean()}

    def r1(self, reals: Tensor, draws: torch.Generator) -> Measured:
        """Dreg: R1 on a batch of real images, by the images before augmentation, times the interval."""
        return {"r1": self._penalise_gradients(self.shard.of(reals).clone(), draws)}

    def r2(self, draws: torch.Generator) -> Measured:
        """R1's place under differential privacy: the same penalty on a batch of fakes, which costs no privacy.

        R2 of Mescheder, Geiger, Nowozin 2018, where either one gives local convergence (theorem 4.1). R1 would need the
        second derivatives of every real image clipped and noised, at a second price.
        """
        with torch.no_grad():
            fakes, _ = self._fakes(draws, self.settings.config.batch_size)
        return {"r2": self._penalise_gradients(fakes, draws)}

    @torch.no_grad()
    def average_weights(self) -> None:
        """Move the averaged generator by the half-life of its weights."""
        decay = 0.5 ** (self.settings.config.batch_size / (self.settings.ema_kimg * 1000))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by name."""
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    def _fakes(self, draws: torch.Generator, n_images: int) -> tuple[Tensor, Tensor]:
        latents, cutoff = draw_latents(self.generator, n_images, draws)
        styles = self.generator.mixed_styles(self.shard.of(latents.to(self.device), dim=1), cutoff)
        noise = [self.shard.of(maps) for maps in draw_noise(self.generator, n_images, on_device(draws, self.device))]
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

    def _projection(self, n_images: int, draws: torch.Generator) -> Tensor:
        shape = (n_images, self.settings.n_channels, *self.settings.image_size_px)
        return self.shard.of(torch.randn(shape, generator=on_device(draws, self.device), device=self.device))


def _adam(network: nn.Module, learning_rate: float, interval: int) -> torch.optim.Adam:
    """Adam with the correction for a lazy regularisation every ``interval`` steps (StyleGAN2, appendix B).

    Fused: all parameters in one pass.
    """
    correction = interval / (interval + 1)
    betas = (0.0**correction, 0.99**correction)
    return torch.optim.Adam(network.parameters(), lr=learning_rate * correction, betas=betas, eps=1e-8, fused=True)
