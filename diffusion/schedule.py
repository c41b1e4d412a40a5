"""When and how many samples a training draws of itself: a pure function of its settings, so that a resumed one agrees.

A sample costs ten evaluations of the denoiser; a training step three for each image (forward, and backward twice as
much). Samples and the monitor's look at them have ``SHARE_OF_TIME`` of the training's time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusion.cost import TRAINING_OVER_FORWARD, autoencoder_flop, denoiser_flop
from diffusion.settings import DiffusionSettings

SHARE_OF_TIME = 0.15
EVALUATIONS = 10
MIN_GAUGED, MAX_GAUGED = 32, 512  # samples; each costs as much as three training images
MIN_GAUGINGS = 3  # with fewer there is no choice of a snapshot
N_SHOWN, N_SHEETS = {2: 16, 3: 4}, 5  # samples on a sheet where there is no monitor, and sheets
N_SETUP_IMAGES = 20  # loading the embedder takes as long as embedding these
FLOP_PER_S = {"cpu": 40e9, "cuda": 40e12}  # of one core (measured) and of a GPU (a cautious guess)


@dataclass(frozen=True)
class SampleSchedule:
    """Samples at the last epoch and at every ``every``-th before it; ``n_references`` 0: they are not gauged."""

    every: int
    n_samples: int
    n_references: int  # real images the monitor embeds at most

    def is_due(self, n_epochs_left: int) -> bool:
        """Whether the epoch with so many still to come ends with samples."""
        return n_epochs_left % self.every == 0


def derive_schedule(
    settings: DiffusionSettings, seconds_per_image: float, n_references: int, device: str = "cpu"
) -> SampleSchedule:
    """As many gaugings (at most one an epoch), then as many samples, as the share of the training's time allows.

    Real images take half of it at most. A training too short for ``MIN_GAUGINGS`` of ``MIN_GAUGED``, or without a
    monitor (``n_references`` 0), has ``N_SHEETS`` sheets.
    """
    speed = FLOP_PER_S["cuda" if device.startswith("cuda") else "cpu"]
    forward_s = denoiser_flop(settings.denoiser, settings.denoised_size) / speed
    autoencoder = settings.autoencoder
    decode_s = 0.0 if autoencoder is None else autoencoder_flop(autoencoder, settings.image_size) / 2 / speed
    training_s = TRAINING_OVER_FORWARD * forward_s * settings.n_steps * settings.batch_size
    sample_s = EVALUATIONS * forward_s + decode_s
    sheets = SampleSchedule(math.ceil(settings.n_epochs / N_SHEETS), N_SHOWN[settings.n_axes], 0)
    if not n_references:
        return sheets
    budget_s = SHARE_OF_TIME * training_s - N_SETUP_IMAGES * seconds_per_image
    n_embedded = min(n_references, math.floor(max(0.0, budget_s) / 2 / seconds_per_image))
    n_samples = math.floor((budget_s - n_embedded * seconds_per_image) / (sample_s + seconds_per_image))
    n_gaugings = min(settings.n_epochs, n_samples // MIN_GAUGED)
    if n_gaugings < MIN_GAUGINGS:
        return sheets
    every = math.ceil(settings.n_epochs / n_gaugings)
    n_times = math.ceil(settings.n_epochs / every)
    return SampleSchedule(every, min(MAX_GAUGED, n_samples // n_times), n_embedded)
