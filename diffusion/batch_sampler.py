"""Images of seeds, such that an image is the same to the last bit however many are asked for and in what parts.

All passes have one fixed shape, the last one filled up with images nobody sees: a convolution's sums may be ordered
differently for another batch size. Every image's random numbers come from its own seed, also those of ancestral steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion.model import Model
from diffusion.samplers import run_sampler
from diffusion.settings import DiffusionSettings
from diffusion.training import autocast

VOXELS_PER_PASS = {"cpu": 2**15, "cuda": 2**20}  # of what is denoised; where more no longer make an image cheaper
MOST_PER_PASS = {"cpu": 16, "cuda": 64}


def images_per_pass(settings: DiffusionSettings, device: str | torch.device) -> int:
    """How many images one forward pass makes; it follows from the sizes and the kind of device alone."""
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    by_denoiser = VOXELS_PER_PASS[kind] // math.prod(settings.denoised_size)
    by_decoder = 4 * VOXELS_PER_PASS[kind] // math.prod(settings.image_size)
    return max(1, min(MOST_PER_PASS[kind], by_denoiser, by_decoder))


class BatchSampler:
    """Images of seeds, pass by pass, by one sampler."""

    def __init__(
        self, model: Model, n_images: int | None = None, sampler: str | None = None, n_evaluations: int | None = None
    ) -> None:
        """``n_images`` of one pass; None for any of them: what follows from the settings, or stands in them."""
        config = model.settings.config
        self.model, self.sampler = model, sampler or config.sampler
        self.n_images = n_images or images_per_pass(model.settings, model.device)
        self.n_evaluations = n_evaluations or config.n_evaluations

    def __call__(
        self, seeds: Sequence[int], asked: Callable[[int], None] | None = None, context: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(n, data channels, *size) on the CPU for each pass, about [-1, 1]; together one image per seed, in order.

        Args:
            asked: called after each evaluation of the network with how many there were for this pass.
            context: (seeds, context channels, *denoised size), for a model that is given masks or images.
        """
        for start in range(0, len(seeds), self.n_images):
            wanted = seeds[start : start + self.n_images]
            part_context = None if context is None else self._filled(context[start : start + len(wanted)])
            yield self._pass(wanted, asked, part_context)[: len(wanted)].float().cpu()

    @torch.inference_mode()
    def _pass(self, seeds: Sequence[int], asked: Callable[[int], None] | None, context: Tensor | None) -> Tensor:
        model, shape = self.model, self.model.noise_shape
        sources = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        drawn = np.zeros((self.n_images, *shape), np.float32)

        def draw() -> Tensor:
            for row, source in zip(drawn, sources, strict=False):
                source.standard_normal(dtype=np.float32, out=row)
            return torch.from_numpy(drawn).to(model.device, copy=True)

        n_asked = 0

        def denoise(noisy: Tensor, time: int) -> Tensor:
            nonlocal n_asked
            times = model.noise_schedule.network_timesteps(torch.full((self.n_images,), time, device=model.device))
            prediction: Tensor = model.denoiser(noisy, times, context=context)
            n_asked += 1
            if asked is not None:
                asked(n_asked)
            return prediction.float()

        with autocast(model.device, model.settings.precision):
            is_clipped = model.settings.autoencoder is None
            arguments = (self.sampler, model.noise_schedule, denoise, draw(), self.n_evaluations, draw, is_clipped)
            return model.images(run_sampler(*arguments))

    def _filled(self, context: Tensor) -> Tensor:
        """As many as a pass has, zeros for those nobody sees."""
        missing = context.new_zeros(self.n_images - len(context), *context.shape[1:])
        return torch.cat([context, missing]).to(self.model.device)
