"""Images between styles: at either end they are the samples themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.gan_trainings import untrained

from gan.sample import sample
from gan.styles import sample_between, sample_truncated
from gan.training import RESULT

SEEDS = [3, 2**40 + 1, 8]


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_at_the_seeds_own_style_they_are_the_samples(tmp_path: Path) -> None:
    """Up to one grey level: the passes have another shape."""
    path = untrained(tmp_path / RESULT, 1, "uint8")
    samples = sample(path, SEEDS)
    assert largest_difference(sample_truncated(path, SEEDS, 1.0), samples) <= 1
    assert largest_difference(sample_between(path, SEEDS, 0.0), samples) <= 1
    assert largest_difference(sample_truncated(path, SEEDS, 0.0), samples) > 1
    assert largest_difference(sample_between(path, SEEDS, 0.5), samples) > 1


def test_between_two_seeds_the_far_end_has_the_next_ones_style_and_its_own_noise(tmp_path: Path) -> None:
    path = untrained(tmp_path / RESULT, 3, "uint16")
    assert np.array_equal(sample_between(path, [5, 5], 1.0), sample_between(path, [5, 5], 0.0))
    assert not np.array_equal(sample_between(path, [5, 6], 1.0)[0], sample_between(path, [5, 6], 0.0)[1])
