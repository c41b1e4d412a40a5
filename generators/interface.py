"""What an experiment asks of a generator: one adapter class is all that the rest of the program knows of it.

An adapter derives from ``GeneratorBackend``, takes no arguments, and gives ``name``, ``check``, ``train`` and
``sample``; whatever else it does not say keeps the default given here. Its module loads PyTorch in its methods only,
so that a command line, a dry run and the check of a package do not wait for it. It is named by its ``adapter`` in a
YAML of ``config/generator``; see docs/architecture.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.errors import InputError
from common.plan import Plan
from common.progress import Progress, silent
from training.monitor import Monitor

STEP_S = 0.2  # of one step on a slow core, where nothing better is known
USUAL_BATCH = 8  # where the machine will choose it


@dataclass(frozen=True)
class TrainRequest:
    """One training. The same request in the same ``out`` resumes it, and changes nothing where it is finished."""

    images: np.ndarray  # (n, channels, height, width), uint8 or uint16
    plan: Plan
    kimg: float | None  # length in thousand images; None: the generator's own choice
    settings: Mapping[str, Any]  # as ``check`` returned them
    out: Path
    seed: int
    device: str = "cpu"  # ``cuda`` is all GPUs that can be seen
    masks: np.ndarray | None = None  # label maps (n, height, width), 0 for background; only if ``makes_masks``
    n_mask_labels: int | None = None  # foreground labels of the dataset, of which a site may lack some
    class_labels: np.ndarray | None = None  # (n,) class of each image
    second_domain: np.ndarray | None = None  # images of the domain that is translated to or from
    progress: Progress = field(default=silent)
    monitor: Monitor | None = None  # scores samples during the training; may be ignored
    patients: Sequence[str] | None = None  # whose each image is; may be ignored


@dataclass(frozen=True)
class SampleRequest:
    """Images to draw from a finished training, one a seed."""

    trained: Path  # the ``out`` of the training
    seeds: Sequence[int]
    batch_size: int | None = None  # images in a forward pass; None: the generator's own choice
    device: str = "cpu"
    progress: Progress = field(default=silent)


class GeneratorBackend(Protocol):
    """A generator; the contract test (tests/generators) holds every adapter to it."""

    name: str
    """What it is called in settings, tables and packages: at most 32 lower-case letters, digits and ``_``."""

    shared_type: type | None = None
    """The dataclass of what ``train`` returns, which bounds what a package may say of it. Only for generators that
    every installation has; a package of any other one may say bounded names and numbers (``bounded_settings``)."""

    tiny_settings: Mapping[str, Any] = {}
    """Settings at which it trains in seconds on a CPU, for tests."""

    report_section: Callable[[Any], str | None] | None = None
    """Its own part of the report, from ``evaluation.report.run.RunFiles``; None: it has none."""

    @abstractmethod
    def check(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete and validate the settings.

        Raises:
            InputError: an unknown key, a wrong type or a value that is not allowed.
        """

    @abstractmethod
    def train(self, request: TrainRequest) -> Mapping[str, Any]:
        """Train; returns the settings as the training resolved them, which a package tells its receiver."""

    @abstractmethod
    def sample(self, request: SampleRequest) -> np.ndarray:
        """Images (n, channels, height, width) in the type of the training images.

        For one batch size an image is the same to the last bit whatever other seeds there are.
        """

    def sample_with_masks(self, request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
        """The images of ``sample`` and their label maps (n, height, width) uint8; only if it makes masks."""
        raise ValueError(f"{self.name} makes no masks")

    def makes_masks(self, settings: Mapping[str, Any]) -> bool:
        """Whether it is trained on label maps too, and makes one with each image."""
        return False

    def sees_mirrored(self, settings: Mapping[str, Any]) -> bool:
        """Whether training images are also shown mirrored."""
        return False

    def monitor_share(self) -> float:
        """Time that its training spends on the monitor, as a share of the time of its steps."""
        return 0.0

    def seconds_per_kimg(self, settings: Mapping[str, Any]) -> float:
        """Expected training time on one slow core; only the schedule and the time left depend on it."""
        batch_size = settings.get("batch_size", USUAL_BATCH)
        return STEP_S * 1000 / float(USUAL_BATCH if batch_size == "auto" else batch_size)


def refuse_unused(request: TrainRequest, adapter: GeneratorBackend, used: Sequence[str] = ()) -> None:
    """Refuse a request that holds something which the generator would ignore.

    Args:
        used: of ``masks``, ``class_labels`` and ``second_domain``, those that it learns from.

    Raises:
        InputError: names what it does not learn from.
    """
    for name in ("masks", "class_labels", "second_domain"):
        if name not in used and getattr(request, name) is not None:
            problem = f"{adapter.name} does not learn from {name.replace('_', ' ')}, and the request holds some"
            raise InputError(problem, where="generator.name", fix="choose a generator that does, or leave them out")
