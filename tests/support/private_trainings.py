"""Tiny private trainings on noise, some images of which are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from support.gan_trainings import TINY, noise_images, tiny_settings

from gan.batches import Batches
from gan.settings import GanConfig, GanSettings, Privacy
from gan.training import Training

# a small norm: every gradient is clipped, and all of its length counts; the rate does not follow from the data
PRIVACY = Privacy(epsilon=4.0, delta=0.01, clip_norm=1e-3, sampling_rate=0.5)
PRIVATE = GanConfig(
    **{**TINY.__dict__, "minibatch_std_group": 1, "snapshot": "last", "mirror": True, "privacy": PRIVACY}
)


def private_settings(n_steps: int = 8, **privacy) -> GanSettings:
    return tiny_settings(n_steps=n_steps, config=replace(PRIVATE, privacy=replace(PRIVACY, **privacy)))


def seven_images() -> np.ndarray:
    """Noise, one of them twice, and one that is white."""
    images = noise_images(n_images=7)
    images[4], images[5] = images[1], 255
    return images


def training(images: np.ndarray, of: GanSettings, patients: Sequence[str] | None = None) -> Training:
    return Training(Batches(images, of, 3), of, 3, torch.device("cpu"), patients=patients)
