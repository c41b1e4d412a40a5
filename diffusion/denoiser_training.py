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
from diffusion.autoencoder_training import load_trained
from diffusion.batch_sampler import BatchSampler
from diffusion.data import Data
from diffusion.model import Model, in_fast_order
from diffusion.noise_schedule import NoiseSchedule
from diffusion.pictures import write_samples
from diffusion.schedule import derive_schedule
from diffusion.settings import DiffusionSettings
from diffusion.training import Training
from training.batch_shard import SINGLE_PROCESS, BatchShard
from training.monitor import Monitor, MonitorSchedule
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
from training.training_state import RESULT

log = logging.getLogger(__name__)

N_VALIDATION_PAIRS = {2: 32, 3: 8}  # of a fixed crop and a time of a fixed grid, by the number of axes
VALIDATION = "val_loss"
N_SHOWN = {2: 16, 3: 4}  # samples on a sheet, by the number of axes
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
        """One step: noise images, predict the noise or v, follow the gradient (Ho et al. 2020, algorithm 1)."""
        settings, schedule = self.settings, self.model.noise_schedule
        # 1. Whole batches of images and random numbers, the same on every process and in any number of parts. Each
        #    image has its time t from one of n equal intervals, which varies less than n independent times.
        images = self.data.at(self.step, self.batch_size)
        n_images, draws = len(images), self.draws("denoiser")
        places = (torch.randperm(n_images, generator=draws) + torch.rand(n_images, generator=draws)) / n_images
        times = (places * schedule.n_times).long().clamp_max(schedule.n_times - 1)
        noise = torch.randn(n_images, *self.model.noise_shape, generator=draws)
        latent_noise = torch.zeros(n_images, 0)
        if settings.autoencoder is not None:
            latent_noise = torch.randn(n_images, *self.model.noise_shape, generator=self.draws("latent"))
        # 2. This process's share, part by part: the loss is the mean of |prediction - target|^2.
        total = torch.zeros((), device=self.device)
        for weight, (part, t, e, latent_e) in self.parts(images, times, noise, latent_noise):
            with self.low_precision():
                clean = self.clean_target(part, latent_e)
                noisy = schedule.noised(clean, e, t)  # x_t = alpha_t x_0 + sigma_t e
                prediction = self.denoiser(noisy, schedule.network_timesteps(t))
                loss = weight * denoising_errors(schedule, prediction, clean, e, t).mean()
            loss.backward()
            total += loss.detach()
        # 3. One step of AdamW on the mean gradient of all processes.
        norm = self.apply_gradients("denoiser", self.denoiser, settings.learning_rate)
        # 4. The averaged weights are those that sample: half-life ema_kimg, less while there is little to average.
        half_life = min(settings.ema_kimg * 1000, 0.1 * (self.step + 1) * self.batch_size)
        kept = 0.5 ** (self.batch_size / max(half_life, 1e-8))
        with torch.no_grad():
            for averaged, weight_now in zip(self.average.parameters(), self.denoiser.parameters(), strict=True):
                averaged.lerp_(weight_now, 1 - kept)
        return {"loss": total, "gradient_norm": norm}

    def clean_target(self, images: Tensor, latent_noise: Tensor) -> Tensor:
        """x_0: the images, or a draw of their latents with mean 0 and deviation 1 over the set."""
        if self.settings.autoencoder is None:
            return images
        with torch.no_grad():
            mean, log_variance = self.model.autoencoder.moments(images)
            drawn = mean + torch.exp(log_variance / 2) * latent_noise
            return ((drawn - self.model.latent_mean) / self.model.latent_std).float()

    def on_epoch_end(self, out: Path) -> Mapping[str, float]:
        """Validation at every epoch; samples, for the sheet and the monitor, at some."""
        scores = {VALIDATION: self._validation_loss()}
        if self.schedule.is_due(self.n_epochs - self.epoch):
            samples = self._write_fixed_samples(out, self.kimg)
            if self.monitor is not None and self.schedule.n_references:
                images = images_to_integers(samples, np.dtype(self.data.output_spec["dtype"]))
                scores |= self.monitor.measure(images, self.schedule.n_references)
        # keep the averaged weights of this epoch while they may still be chosen
        candidate = Candidate(self.step, self.kimg, scores)
        if self._chooses_by_loss:
            best = self.candidates[0].scores[VALIDATION] if self.candidates else float("inf")
            if self.data.has_heldout and scores[VALIDATION] < best:
                self.candidates = [candidate]
        else:
            self.candidates = still_eligible([*self.candidates, candidate], self.settings.config.snapshot)
        if candidate in self.candidates:
            save_candidate(candidate, self.average.state_dict(), out)
        remove_candidates(out, but=self.candidates)
        return scores

    @property
    def _chooses_by_loss(self) -> bool:
        """Without a monitor, held-out cases choose the snapshot by their denoising loss."""
        return self.monitor is None and self.settings.config.snapshot == "heldout"

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Loss of the averaged weights on fixed crops, at a fixed grid of times, with fixed noise."""
        schedule, crops = self.model.noise_schedule, self.data.fixed()
        n_pairs = N_VALIDATION_PAIRS[self.settings.n_axes]
        pairs = torch.arange(n_pairs)
        draws = torch.Generator().manual_seed(derive_seed(self.seed, "validation"))
        noise = torch.randn(n_pairs, *self.model.noise_shape, generator=draws)
        times = (pairs + 0.5) / n_pairs * schedule.n_times
        times = times.long()[torch.randperm(n_pairs, generator=draws)]
        errors = []
        for part in pairs.split(max(1, self.batch_size // self.n_accumulated)):
            images, e, t = (x.to(self.device) for x in (crops[part % len(crops)], noise[part], times[part]))
            with self.low_precision():
                clean = self.clean_target(images, torch.zeros_like(e))
                prediction = self.average(schedule.noised(clean, e, t), schedule.network_timesteps(t))
            errors.append(denoising_errors(schedule, prediction, clean, e, t))
        return float(torch.cat(errors).mean())

    def _write_fixed_samples(self, out: Path, kimg: float) -> Tensor:
        """Images (n, channels, *size) of seeds that are the same at every snapshot; some of them go on a sheet."""
        n_evaluations = min(CHECKPOINT_EVALUATIONS, self.model.noise_schedule.n_times)
        sampler = BatchSampler(self._with_average(), None, CHECKPOINT_SAMPLER, n_evaluations)
        seeds = [derive_seed(self.seed, "fixed samples", index) for index in range(self.schedule.n_samples)]
        samples = torch.cat(list(sampler(seeds)))
        write_samples(out, samples[: N_SHOWN[self.settings.n_axes]], self.settings.n_channels, kimg)
        return samples[:, : self.settings.n_channels]

    def _with_average(self) -> Model:
        """The model with the averaged denoiser; nothing is copied."""
        sampling = copy.copy(self.model)
        sampling._modules = {**self.model._modules, "denoiser": self.average}
        return sampling

    def more_state(self) -> dict[str, Any]:
        """The snapshots that may still be chosen, and when there are samples."""
        return {"candidates": [to_dict(one) for one in self.candidates], "schedule": to_dict(self.schedule)}

    def load_more_state(self, metadata: Mapping[str, Any]) -> None:
        """Both."""
        self.candidates = [from_dict(Candidate, one) for one in metadata["candidates"]]
        self.schedule = from_dict(MonitorSchedule, metadata["schedule"])

    def finish(self, out: Path) -> dict[str, Any]:
        """Write the chosen snapshot as ``generator.safetensors``; returns which it is and why. The state goes."""
        rule, last = self.settings.config.snapshot, Candidate(self.step, self.kimg)
        candidate, reason = choose(self.candidates, rule)
        if self._chooses_by_loss and self.candidates:
            candidate, reason = self.candidates[0], "the lowest denoising loss on held-out cases"
        if candidate is not None and candidate.step != self.step:
            self.average.load_state_dict(load_candidate(candidate, out))
            if self.schedule.n_samples:
                self._write_fixed_samples(out, candidate.kimg)
        chosen = chosen_as_metadata(candidate, last, rule, reason)
        log.info("chose the snapshot at %g of %g kimg: %s; %s", chosen["kimg"], last.kimg, reason, chosen["scores"])
        save_tensors(out / RESULT, self._with_average().state_dict(), {**self.metadata(), "snapshot": chosen})
        (out / self.checkpoint).unlink(missing_ok=True)
        remove_candidates(out)
        return chosen


def denoising_errors(schedule: NoiseSchedule, prediction: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """(b,) mean squared error of each prediction against ``NoiseSchedule.target``."""
    return (prediction.float() - schedule.target(clean, noise, t)).square().flatten(1).mean(1)
