"""Training of the denoiser, in pixels or in the latents of a finished autoencoder, and the choice of its snapshot."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.checkpoints import save_tensors
from common.seeds import derive_seed
from common.settings import from_dict, to_dict
from diffusion.augment import augment
from diffusion.autoencoder_training import latents_of, load_trained
from diffusion.batch_sampler import BatchSampler
from diffusion.data import Data
from diffusion.loss import denoising_errors
from diffusion.model import RESULT, Model, in_fast_order
from diffusion.pictures import write_samples
from diffusion.schedule import SampleSchedule, derive_schedule
from diffusion.settings import DiffusionSettings
from diffusion.training import Training, autocast
from training.batch_shard import SINGLE_PROCESS, BatchShard
from training.monitor import Monitor
from training.pictures import images_to_integers
from training.snapshots import (
    Candidate,
    choose,
    chosen_as_metadata,
    load_candidate,
    remove_candidates,
    save_candidate,
    still_eligible,
)

log = logging.getLogger(__name__)

N_VALIDATION_PAIRS = {2: 32, 3: 8}  # of a fixed crop and a time of a fixed grid, by the number of axes
VALIDATION = "val_loss"
N_SHOWN = 16  # samples on a sheet; four of volumes
CHECKPOINT_SAMPLER, CHECKPOINT_EVALUATIONS = "multistep", 10


class DenoiserTraining(Training):
    """The networks are ``denoiser`` and ``average``, the moving average of its weights that samples."""

    checkpoint = "training.safetensors"

    def __init__(
        self,
        data: Data,
        settings: DiffusionSettings,
        seed: int,
        device: torch.device,
        shard: BatchShard = SINGLE_PROCESS,
        autoencoder: Path | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        """``autoencoder``: the folder of the finished one, for a model in latents."""
        super().__init__(data, settings, seed, device, shard, settings)
        torch.manual_seed(derive_seed(seed, "denoiser"))
        self.model = Model(settings).to(device)
        if autoencoder is not None:
            trained = load_trained(autoencoder, settings, seed, device)
            self.model.autoencoder, self.model.latent_mean, self.model.latent_std = trained
        self.denoiser = self.model.denoiser
        self.average = copy.deepcopy(self.denoiser).requires_grad_(False)
        for network in (self.denoiser, self.average):
            in_fast_order(network)
        self.modules: dict[str, nn.Module] = {"denoiser": self.denoiser, "average": self.average}
        self.optimizers = {"denoiser": torch.optim.AdamW(self.denoiser.parameters(), settings.learning_rate)}
        self.optimizers["denoiser"].param_groups[0]["weight_decay"] = 0.0
        self.monitor, self.candidates = monitor, list[Candidate]()
        n_references = 0 if monitor is None else monitor.n_references
        per_image_s = 0.0 if monitor is None else monitor.seconds_per_image
        self.schedule = derive_schedule(settings, per_image_s, n_references, device.type)
        if monitor is not None and not self.schedule.n_references:
            log.info("%g kimg are too short for a monitor: none, and the last snapshot is taken", settings.kimg)

    def update(self) -> Mapping[str, Tensor]:
        """Noise at a random time, what the denoiser says of it, one step, and the average of the weights."""
        settings, process = self.settings, self.model.process
        batch, told = self._augmented(self.data.at(self.step, self.batch_size))
        n_images = len(batch)
        draws = self.draws("denoiser")
        # one time out of each of n equal parts of the schedule: as random, and steadier than n independent ones
        places = (torch.randperm(n_images, generator=draws) + torch.rand(n_images, generator=draws)) / n_images
        times = (places * process.n_times).long().clamp_max(process.n_times - 1)
        noise = torch.randn(n_images, *self.model.noise_shape, generator=draws)
        latent_noise = self._latent_noise(n_images)
        total = torch.zeros((), device=self.device)
        for weight, (images, part_told, part_times, added, drawn) in self.parts(
            batch, told, times, noise, latent_noise
        ):
            with self.low_precision():
                clean = self._denoised(images, drawn)
                noisy = process.noised(clean, added, part_times)
                said = self.denoiser(noisy, process.shown(part_times), augmented=part_told)
                loss = weight * denoising_errors(process, said, clean, added, part_times).mean()
            loss.backward()
            total += loss.detach()
        norm = self.apply_gradients("denoiser", self.denoiser, settings.learning_rate)
        self._average_weights()
        return {"loss": total, "gradient_norm": norm}

    def _augmented(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        names = self.settings.config.augment
        if not names:
            return batch, torch.zeros(len(batch), 0)
        return augment(batch, names, self.settings.n_channels, self.draws("augment"))

    def _latent_noise(self, n_images: int) -> Tensor:
        if self.settings.autoencoder is None:
            return torch.zeros(n_images, 0)
        return torch.randn(n_images, *self.model.noise_shape, generator=self.draws("latent"))

    def _denoised(self, images: Tensor, latent_noise: Tensor) -> Tensor:
        """What is denoised of ``images``: themselves, or a draw of their latents."""
        if self.settings.autoencoder is None:
            return images
        with torch.no_grad():
            statistics = self.model.latent_mean, self.model.latent_std
            return latents_of(self.model.autoencoder, statistics, images, latent_noise).float()

    @torch.no_grad()
    def _average_weights(self) -> None:
        """Half-life of ``ema_kimg``, shorter in the beginning, when there is little to average."""
        half_life = min(self.settings.ema_kimg * 1000, 0.1 * (self.step + 1) * self.batch_size)
        kept = 0.5 ** (self.batch_size / max(half_life, 1e-8))
        for averaged, weight in zip(self.average.parameters(), self.denoiser.parameters(), strict=True):
            averaged.lerp_(weight, 1 - kept)

    def on_epoch_end(self, out: Path) -> Mapping[str, float]:
        """Validation at every epoch; samples, for the sheet and the monitor, at some."""
        scores = {VALIDATION: self._validation_loss()}
        if self.schedule.is_due(self.n_epochs - self.epoch):
            samples = self._fixed_samples()
            shown = samples[: N_SHOWN if self.settings.n_axes == 2 else 4]
            write_samples(out, shown, self.settings.n_channels, self.kimg)
            if self.monitor is not None and self.schedule.n_references:
                integers = images_to_integers(
                    samples[:, : self.settings.n_channels], np.dtype(self.data.facts["dtype"])
                )
                scores |= self.monitor.measure(integers, self.schedule.n_references)
        self._consider(Candidate(self.step, self.kimg, scores), out)
        return scores

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Of the averaged weights, on fixed crops, at a fixed grid of times, with fixed noise."""
        process, crops = self.model.process, self.data.fixed()
        n_pairs = N_VALIDATION_PAIRS[self.settings.n_axes]
        pairs = torch.arange(n_pairs)
        draws = torch.Generator().manual_seed(derive_seed(self.seed, "validation"))
        noise = torch.randn(n_pairs, *self.model.noise_shape, generator=draws)
        latent_noise = torch.zeros_like(noise)
        times = (pairs + 0.5) / n_pairs * process.n_times
        times = times.long()[torch.randperm(n_pairs, generator=draws)]
        errors = []
        for part in pairs.split(max(1, self.batch_size // self.n_accumulated)):
            images = crops[part % len(crops)].to(self.device)
            added, when = noise[part].to(self.device), times[part].to(self.device)
            with autocast(self.device, self.settings.precision):
                clean = self._denoised(images, latent_noise[part].to(self.device))
                said = self.average(process.noised(clean, added, when), process.shown(when))
            errors.append(denoising_errors(process, said, clean, added, when))
        return float(torch.cat(errors).mean())

    def _fixed_samples(self) -> Tensor:
        """(n, data channels, *size) of seeds that are the same at every snapshot."""
        sampling = self._with_average()
        passes = BatchSampler(sampling, None, CHECKPOINT_SAMPLER, min(CHECKPOINT_EVALUATIONS, sampling.process.n_times))
        seeds = [derive_seed(self.seed, "fixed samples", index) for index in range(self.schedule.n_samples)]
        return torch.cat(list(passes(seeds)))

    def _with_average(self) -> Model:
        """The model with the averaged denoiser; nothing is copied."""
        sampling = copy.copy(self.model)
        sampling._modules = {**self.model._modules, "denoiser": self.average}
        return sampling

    def _consider(self, candidate: Candidate, out: Path) -> None:
        """Keep the epoch's averaged weights while they may still be chosen."""
        if self.monitor is None and self.settings.config.snapshot == "heldout":
            best = self.candidates[0].scores[VALIDATION] if self.candidates else float("inf")
            self.candidates = (
                [candidate] if self._is_validated and candidate.scores[VALIDATION] < best else (self.candidates)
            )
        else:
            self.candidates = still_eligible([*self.candidates, candidate], self.settings.config.snapshot)
        if candidate in self.candidates:
            save_candidate(candidate, self.average.state_dict(), out)
        remove_candidates(out, but=self.candidates)

    @property
    def _is_validated(self) -> bool:
        return self.data.has_heldout

    def more_state(self) -> dict[str, Any]:
        """The snapshots that may still be chosen, and when there are samples."""
        return {"candidates": [to_dict(one) for one in self.candidates], "schedule": to_dict(self.schedule)}

    def load_more_state(self, metadata: Mapping[str, Any]) -> None:
        """Both."""
        self.candidates = [from_dict(Candidate, one) for one in metadata["candidates"]]
        self.schedule = from_dict(SampleSchedule, metadata["schedule"])

    def finish(self, out: Path) -> dict[str, Any]:
        """Write the chosen snapshot as ``generator.safetensors``; returns which it is and why. The state goes."""
        rule, last = self.settings.config.snapshot, Candidate(self.step, self.kimg)
        candidate, reason = choose(self.candidates, rule)
        if self.monitor is None and rule == "heldout" and self.candidates:
            candidate, reason = self.candidates[0], "the lowest denoising loss on held-out cases"
        if candidate is not None and candidate.step != self.step:
            self.average.load_state_dict(load_candidate(candidate, out))
            if self.schedule.n_samples:
                samples = self._fixed_samples()[: N_SHOWN if self.settings.n_axes == 2 else 4]
                write_samples(out, samples, self.settings.n_channels, candidate.kimg)
        chosen = chosen_as_metadata(candidate, last, rule, reason)
        log.info("chose the snapshot at %g of %g kimg: %s; %s", chosen["kimg"], last.kimg, reason, chosen["scores"])
        metadata = {"settings": to_dict(self.settings), "seed": self.seed, "facts": dict(self.data.facts)}
        save_tensors(out / RESULT, self._with_average().state_dict(), {**metadata, "snapshot": chosen})
        (out / self.checkpoint).unlink(missing_ok=True)
        remove_candidates(out)
        return chosen
