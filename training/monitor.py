"""What a generator's training asks about its samples, and how often: it need know neither embedders nor patients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

KERNEL_HELDOUT = "kernel_heldout"  # unbiased kernel distance to held-out patients' images
KERNEL_HELDOUT_ERROR = "kernel_heldout_error"  # its standard error
FRECHET_HELDOUT = "frechet_heldout"
KERNEL_TRAIN = "kernel_train"  # to the training images: low also where the generator copies
FRECHET_TRAIN = "frechet_train"
NEAREST_TRAIN = "nearest_train"  # distance to the nearest training image; 1: as near as an unseen patient's images are
COPIED_TRAIN = "copied_train"  # share nearer to a training image than 19 of 20 unseen patients' images are
DIVERSITY = "diversity"  # mean distance between two samples; 1: as between two real images

MIN_MEASUREMENTS = 3  # with fewer there is no choice of a snapshot
N_SETUP_IMAGES = 20  # loading the embedder takes as long as embedding these


class Monitor(Protocol):
    """Scores of samples against real images; the same samples give the same scores."""

    @property
    def n_references(self) -> int:
        """Real images that are embedded once."""

    @property
    def seconds_per_image(self) -> float:
        """About what embedding one image takes on the device in use."""

    def measure(self, samples: np.ndarray, n_references: int) -> Mapping[str, float]:
        """Scores by name of (n, channels, height, width) integers, with ``n_references`` of the real images at most."""


@dataclass(frozen=True)
class MonitorSchedule:
    """Measure at the last snapshot and at every ``every``-th before it, ``n_samples`` each; ``every`` 0: never."""

    every: int
    n_samples: int
    n_references: int  # real images embedded at most

    def is_due(self, n_snapshots_left: int) -> bool:
        """Whether the snapshot with so many still to come is measured."""
        return self.every > 0 and n_snapshots_left % self.every == 0


NEVER = MonitorSchedule(0, 0, 0)


def schedule_within(
    budget_s: float,
    sample_s: float,
    embed_s: float,
    n_references: int,
    n_snapshots: int,
    min_samples: int,
    max_samples: int,
) -> MonitorSchedule:
    """As many measurements as the time allows (at most one a snapshot), then as many samples for each.

    A pure function, so that a resumed training has the schedule it began with. Real images take half of the time at
    most. ``NEVER`` where the time is too short for ``MIN_MEASUREMENTS`` of ``min_samples``.

    Args:
        budget_s: seconds for all measurements of the training, the loading of the embedder included.
        sample_s, embed_s: seconds to generate one image, and to embed one.
    """
    left_s = budget_s - N_SETUP_IMAGES * embed_s
    n_embedded = min(n_references, math.floor(max(0.0, left_s) / 2 / embed_s))
    n_samples = math.floor((left_s - n_embedded * embed_s) / (sample_s + embed_s))
    n_measurements = min(n_snapshots, n_samples // min_samples)
    if n_measurements < MIN_MEASUREMENTS:
        return NEVER
    every = math.ceil(n_snapshots / n_measurements)
    return MonitorSchedule(every, min(max_samples, n_samples // math.ceil(n_snapshots / every)), n_embedded)
