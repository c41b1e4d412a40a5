"""Images of seeds, batch by batch: an image is the same to the last bit, however many are asked for.

All batches have one shape, and the last one is filled up with images that nobody sees: a convolution may add in another
order for another batch size. The random numbers of an image come from its own seed, also those of ancestral steps.
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

VOXELS_PER_PASS = {"cpu": 2**15, "cuda": 2**20}  # more do not make an image cheaper
MOST_PER_PASS = {"cpu": 16, "cuda": 64}


def images_per_pass(settings: DiffusionSettings, device: str | torch.device) -> int:
    """The size of a batch; it follows from the sizes of an image and the kind of device alone."""
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    by_denoiser = VOXELS_PER_PASS[kind] // math.prod(settings.denoised_size)
    by_decoder = 4 * VOXELS_PER_PASS[kind] // math.prod(settings.image_size)
    return max(1, min(MOST_PER_PASS[kind], by_denoiser, by_decoder))


class BatchSampler:
    """Images of seeds, made by one sampler."""

    def __init__(
        self, model: Model, n_images: int | None = None, sampler: str | None = None, n_evaluations: int | None = None
    ) -> None:
        """``n_images``: of one batch; None for any argument: the value that the settings hold or lead to."""
        config = model.settings.config
        self.model, self.sampler = model, sampler or config.sampler
        self.n_images = n_images or images_per_pass(model.settings, model.device)
        self.n_evaluations = n_evaluations or config.n_evaluations

    def __call__(
        self, seeds: Sequence[int], asked: Callable[[int], None] | None = None, context: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(n, data channels, *size) on the CPU for each batch, about [-1, 1]; together one image per seed, in order.

        Args:
            asked: called after each evaluation of the network with the number of those for this batch.
            context: (seeds, context channels, *denoised size), for a model conditioned on masks or images.
        """
        for start in range(0, len(seeds), self.n_images):
            wanted = seeds[start : start + self.n_images]
            filled = None
            if context is not None:
                given = context[start : start + len(wanted)]
                missing = context.new_zeros(self.n_images - len(wanted), *context.shape[1:])
                filled = torch.cat([given, missing]).to(self.model.device)
            yield self._batch(wanted, asked, filled)[: len(wanted)].float().cpu()

    @torch.inference_mode()
    def _batch(self, seeds: Sequence[int], asked: Callable[[int], None] | None, context: Tensor | None) -> Tensor:
        model, schedule = self.model, self.model.noise_schedule
        sources = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        drawn = np.zeros((self.n_images, *model.noise_shape), np.float32)
        n_asked = 0

        def draw() -> Tensor:
            for row, source in zip(drawn, sources, strict=False):
                source.standard_normal(dtype=np.float32, out=row)
            return torch.from_numpy(drawn).to(model.device, copy=True)

        def denoise(noisy: Tensor, time: int) -> Tensor:
            nonlocal n_asked
            times = schedule.network_timesteps(torch.full((self.n_images,), time, device=model.device))
            prediction: Tensor = model.denoiser(noisy, times, context=context)
            n_asked += 1
            if asked is not None:
                asked(n_asked)
            return prediction.float()

        with autocast(model.device, model.settings.precision):
            clean = run_sampler(
                sampler=self.sampler,
                schedule=schedule,
                denoise=denoise,
                noise=draw(),
                n_evaluations=self.n_evaluations,
                draw_noise=draw,
                is_clipped=model.settings.autoencoder is None,
            )
            return model.images(clean)
