"""How a training notices that it diverged or that its samples collapsed, and how it goes on.

After a failure the training goes back to its last good snapshot and on with other random numbers (another attempt), at
most ``N_ATTEMPTS - 1`` times: the same numbers would fail again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import write_text
from common.seeds import derive_seed

ALARMS = "alarms.jsonl"
LAST_GOOD = "last_good.safetensors"
N_ATTEMPTS = 3
N_SHOWN_ROWS = 5  # of the curves, in an alarm
LARGEST_LOSS = 1e3  # of losses and logits; healthy ones stay below a hundred
LARGEST_WEIGHT = 1e6  # those of the mapping start with a standard deviation of 100
DIVERSE_SHARE = 0.4  # of the real images' diversity: from then on a training has something to lose
COLLAPSED_SHARE = 0.2
N_COLLAPSED = 2  # measurements in a row below it
N_COMPARED = 16  # images, where pixels stand in for features


class TrainingFailedError(RuntimeError):
    """The training diverged or collapsed; ``kind`` is "divergence" or "mode collapse"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def check_measured(measured: Mapping[str, float], bounded: Iterable[str], step: int, fix: str) -> None:
    """TrainingFailedError unless all numbers are finite, and those ``bounded`` no larger than in a healthy training."""
    exploded = any(abs(measured.get(name, 0.0)) > LARGEST_LOSS for name in bounded)
    if exploded or not all(math.isfinite(value) for value in measured.values()):
        raise _diverged(step, str(dict(sorted(measured.items()))), fix)


def check_weights(modules: Mapping[str, torch.nn.Module], step: int, fix: str) -> None:
    """TrainingFailedError unless all weights are finite and no larger than ``LARGEST_WEIGHT``."""
    for name, module in modules.items():
        largest = torch.stack([tensor.detach().abs().max().float() for tensor in module.parameters()]).max().item()
        if not largest <= LARGEST_WEIGHT:  # NaN compares false
            raise _diverged(step, f"largest weight of the {name}: {largest:g}", fix)


def _diverged(step: int, found: str, fix: str) -> TrainingFailedError:
    return TrainingFailedError("divergence", f"the generator's training diverged at step {step} ({found}); {fix}")


@dataclass(frozen=True)
class Health:
    """What the diversities measured so far mean; 1 is the diversity of the real images."""

    was_diverse: bool = False
    n_collapsed: int = 0  # in a row

    def after(self, diversity: float) -> Health:
        """With one more measurement. A collapse is a fall: a young generator's images look alike without one."""
        was_diverse = self.was_diverse or diversity >= DIVERSE_SHARE
        return Health(was_diverse, self.n_collapsed + 1 if was_diverse and diversity < COLLAPSED_SHARE else 0)

    def check(self, diversity: float, step: int, fix: str = "") -> None:
        """TrainingFailedError after ``N_COLLAPSED`` measurements in a row without diversity."""
        if self.n_collapsed >= N_COLLAPSED:
            raise TrainingFailedError(
                "mode collapse",
                f"the generator's samples collapsed by step {step} (their diversity is {diversity:.2f} of the real "
                f"images', below {COLLAPSED_SHARE} for {N_COLLAPSED} measurements); {fix}",
            )


def pixel_diversity(samples: np.ndarray, reals: np.ndarray) -> float:
    """Mean distance between two samples over that between two real images, all (n, channels, height, width)."""
    means = []
    for images in (samples, reals):
        flat = images.reshape(len(images), -1).astype(np.float64)
        distances = [np.linalg.norm(flat[i + 1 :] - flat[i], axis=1) for i in range(len(flat) - 1)]
        means.append(float(np.concatenate(distances).mean()))
    return means[0] / max(means[1], 1e-12)


def seed_of_attempt(seed: int, attempt: int) -> int:
    """The first attempt's seed is the training's own."""
    return seed if attempt == 0 else derive_seed(seed, "attempt", attempt)


def write_alarms(alarms: Sequence[Mapping[str, Any]], out: Path) -> None:
    """``alarms.jsonl``, only where there was one."""
    if alarms:
        write_text(out / ALARMS, "".join(json.dumps(alarm, sort_keys=True) + "\n" for alarm in alarms))
