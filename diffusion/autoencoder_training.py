"""Training of the autoencoder: L1, perceptual and adversarial terms, order in the latents; then the latents' scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from common.checkpoints import load_tensors, save_tensors
from common.seeds import derive_seed
from diffusion.autoencoder import Autoencoder
from diffusion.data import Data
from diffusion.loss import build_discriminator, critic_loss, generator_loss
from diffusion.perceptual import build_perceptual, perceptual_distance
from diffusion.pictures import write_reconstructions
from diffusion.settings import AutoencoderSettings, DiffusionSettings
from diffusion.training import Training
from training.batch_shard import SINGLE_PROCESS, BatchShard
from training.training_state import check_same_run

RESULT = "autoencoder.safetensors"
LARGEST_CRITIC = 64  # feature maps of its first layer
MOST_SCALE_BATCHES = 64  # over which the latents' mean and deviation are estimated
N_PICTURES = 5  # reconstructions over the training
ADAM_BETAS = 0.5, 0.9


class AutoencoderTraining(Training):
    """The networks are ``autoencoder`` and, where images are large enough for patches, ``critic``."""

    checkpoint = "training.safetensors"

    def __init__(
        self,
        data: Data,
        settings: DiffusionSettings,
        seed: int,
        device: torch.device,
        shard: BatchShard = SINGLE_PROCESS,
    ) -> None:
        self.own = autoencoder_settings(settings)
        super().__init__(data, settings, seed, device, shard, self.own)
        torch.manual_seed(derive_seed(seed, "autoencoder"))
        self.autoencoder = Autoencoder(self.own).to(device)
        self.modules: dict[str, nn.Module] = {"autoencoder": self.autoencoder}
        n_critic = min(LARGEST_CRITIC, self.own.channels[0])
        self.critic = build_discriminator(self.own.n_channels, settings.image_size, n_critic)
        if self.critic is not None and self.own.adversarial_weight > 0:
            self.modules["critic"] = self.critic.to(device)
        self.optimizers = {
            name: torch.optim.Adam(module.parameters(), self.own.learning_rate, ADAM_BETAS)
            for name, module in self.modules.items()
        }
        network = build_perceptual(self.own.perceptual) if self.own.perceptual_weight > 0 else None
        self.perceptual = None if network is None else network.to(device)
        self.fixed = data.fixed()

    def update(self) -> Mapping[str, Tensor]:
        """One step of the autoencoder, then one of the critic once it has joined (Rombach et al. 2022, appendix G).

        The loss of the autoencoder is L1 + perceptual + adversarial + order of the latents (KL or VQ), each weighted.
        """
        own, critic = self.own, self.modules.get("critic")
        if self.step < own.adversarial_from_step:
            critic = None
        # 1. Whole batches of images and of noise for the latents, the same on every process and in any parts.
        images = self.data.at(self.step, self.batch_size)
        latent_shape = (own.latent_channels, *self.settings.denoised_size)
        noise = torch.randn(len(images), *latent_shape, generator=self.draws("latent"))
        # 2. This process's share, part by part: reconstruct, weigh the terms, collect the gradient.
        measured: dict[str, Tensor] = {}
        pairs: list[tuple[float, Tensor, Tensor]] = []  # weight, reconstruction, image: for the critic
        for weight, (real, drawn) in self.parts(images, noise):
            with self.low_precision():
                made, order = self.autoencoder(real, drawn)
                made, order = made.float(), order.float()
                terms = {"loss_l1": (made - real).abs().mean()}
                terms["loss_latent"] = own.kl_weight * order if own.kind == "kl" else order
                if self.perceptual is not None:
                    distance = perceptual_distance(self.perceptual, made, real, self.draws("slices"), own.checkpointing)
                    terms["loss_perceptual"] = own.perceptual_weight * distance
                if critic is not None:
                    terms["loss_adversarial"] = own.adversarial_weight * generator_loss(critic, made)
            (weight * torch.stack(list(terms.values())).sum()).backward()
            for name, value in terms.items():
                measured[name] = measured.get(name, torch.zeros((), device=self.device)) + weight * value.detach()
            pairs.append((weight, made.detach(), real))
        # 3. One step of Adam; the gradient that the loss left in the critic is not the critic's.
        if critic is not None:
            self.optimizers["critic"].zero_grad(set_to_none=True)
        measured["gradient_norm"] = self.apply_gradients("autoencoder", self.autoencoder, own.learning_rate)
        # 4. The critic learns to tell the same reconstructions from their images.
        if critic is not None:
            total = torch.zeros((), device=self.device)
            for weight, made, real in pairs:
                with self.low_precision():
                    loss = weight * critic_loss(critic, made, real).float()
                loss.backward()
                total += loss.detach()
            self.apply_gradients("critic", critic, own.learning_rate)
            measured["loss_critic"] = total
        return measured

    @torch.no_grad()
    def on_epoch_end(self, out: Path) -> Mapping[str, float]:
        """Mean absolute error on the fixed crops, from the latents' means."""
        parts = []
        for crops in self.fixed.split(max(1, self.batch_size // self.n_accumulated)):
            with self.low_precision():
                mean, _ = self.autoencoder.moments(crops.to(self.device))
                parts.append(self.autoencoder.decode(mean).float().cpu())
        made = torch.cat(parts)
        if (self.n_epochs - self.epoch) % math.ceil(self.n_epochs / N_PICTURES) == 0:
            write_reconstructions(out, self.fixed, made, self.kimg)
        return {"val_l1": float((made - self.fixed).abs().mean())}

    def finish(self, out: Path) -> None:
        """The weights, and the mean and deviation of the latents, estimated over the set; the state goes."""
        mean, std = latent_statistics(self.autoencoder, self.data, self.settings)
        tensors = {**self.autoencoder.state_dict(), "latent_mean": mean, "latent_std": std}
        save_tensors(out / RESULT, tensors, self.metadata())
        (out / self.checkpoint).unlink(missing_ok=True)


def autoencoder_settings(settings: DiffusionSettings) -> AutoencoderSettings:
    """Those of a latent diffusion model."""
    if settings.autoencoder is None:
        raise ValueError("a diffusion model in pixels has no autoencoder")
    return settings.autoencoder


def load_trained(
    out: Path, settings: DiffusionSettings, seed: int, device: torch.device
) -> tuple[Autoencoder, Tensor, Tensor]:
    """The finished autoencoder in ``out``, frozen, and its latents' mean and deviation (1, channels, 1, ...).

    Raises:
        InputError: it is of another training.
    """
    tensors, metadata = load_tensors(out / RESULT)
    check_same_run(out / RESULT, metadata, settings, seed)
    mean, std = tensors.pop("latent_mean"), tensors.pop("latent_std")
    autoencoder = Autoencoder(autoencoder_settings(settings))
    autoencoder.load_state_dict(tensors)
    return autoencoder.to(device).eval().requires_grad_(False), mean.to(device), std.to(device)


@torch.no_grad()
def latent_statistics(autoencoder: Autoencoder, data: Data, settings: DiffusionSettings) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over the set, (1, channels, 1, ...) on the CPU.

    The original took one random batch, and another one after every resume (defect 5).
    """
    own = autoencoder_settings(settings)
    device = next(autoencoder.parameters()).device
    n_batches = min(MOST_SCALE_BATCHES, -(-data.n_items // own.batch_size))
    total = torch.zeros(2, own.latent_channels, dtype=torch.float64)
    n_values = 0
    n_at_once = max(1, own.batch_size // own.n_accumulated)
    for images in (part for i in range(n_batches) for part in data.at(i, own.batch_size).split(n_at_once)):
        mean, log_variance = autoencoder.moments(images.to(device))
        axes = (0, *range(2, mean.ndim))
        squares = mean.double().square() + log_variance.double().exp()
        total += torch.stack([mean.double().sum(axes), squares.sum(axes)]).cpu()
        n_values += mean.numel() // own.latent_channels
    mean, squared = total / n_values
    std = (squared - mean.square()).clamp(min=1e-12).sqrt()
    shape = (1, own.latent_channels, *[1] * settings.n_axes)
    return mean.float().reshape(shape), std.float().reshape(shape)
