"""When a training draws samples, and how many: it follows from the settings alone, so that a resumed training agrees.

A sample costs ten evaluations of the denoiser; a training step three for each image (forward, and backward twice as
much). To draw and to measure the samples takes ``SHARE_OF_TIME`` of the training's time at most.
"""

from __future__ import annotations

import math

from diffusion.cost import TRAINING_OVER_FORWARD, autoencoder_flop, denoiser_flop
from diffusion.settings import DiffusionSettings
from training.monitor import NEVER, MonitorSchedule, schedule_within

SHARE_OF_TIME = 0.15
EVALUATIONS = 10
MIN_SAMPLES, MAX_SAMPLES = 32, 512  # for the monitor; each costs as much as three training images
N_SHOWN, N_SHEETS = {2: 16, 3: 4}, 5  # samples on a sheet where there is no monitor, and sheets
FLOP_PER_S = {"cpu": 40e9, "cuda": 40e12}  # of one core (measured) and of a GPU (a cautious guess)


def derive_schedule(
    settings: DiffusionSettings, seconds_per_image: float, n_references: int, device: str = "cpu"
) -> MonitorSchedule:
    """Samples at the last epoch and at some before it; without real images (``n_references`` 0) nobody measures them.

    As many measurements, samples and real images as the share of the training's time allows. A training too short for
    that, or without a monitor (``n_references`` 0), has ``N_SHEETS`` sheets.
    """
    speed = FLOP_PER_S["cuda" if device.startswith("cuda") else "cpu"]
    forward_s = denoiser_flop(settings.denoiser, settings.denoised_size) / speed
    autoencoder = settings.autoencoder
    decode_s = 0.0 if autoencoder is None else autoencoder_flop(autoencoder, settings.image_size) / 2 / speed
    training_s = TRAINING_OVER_FORWARD * forward_s * settings.n_steps * settings.batch_size
    schedule = NEVER
    if n_references:
        schedule = schedule_within(
            budget_s=SHARE_OF_TIME * training_s,
            sample_s=EVALUATIONS * forward_s + decode_s,
            embed_s=seconds_per_image,
            n_references=n_references,
            n_snapshots=settings.n_epochs,
            min_samples=MIN_SAMPLES,
            max_samples=MAX_SAMPLES,
        )
    if schedule == NEVER:
        return MonitorSchedule(math.ceil(settings.n_epochs / N_SHEETS), N_SHOWN[settings.n_axes], 0)
    return schedule
