"""Read every case once before a training: check it, and collect where its labels and its background lie.

nnU-Net keeps sampled places of each label in a pickle; here they are sampled again from the label map.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.seeds import derive_seed
from nnunetv2_mod.cases import OUTSIDE, PREPROCESS, CaseFolder, Voxel

log = logging.getLogger(__name__)

N_PLACES = 1000  # of each label of a case that a crop may be centred on
WINDOW_PERCENTILES = (0.05, 99.95)


@dataclass(frozen=True)
class SurveyedCase:
    """``size``: (Z, Y, X) voxels; ``background``: the value of each channel where there is nothing."""

    name: str
    size: Voxel
    background: np.ndarray  # (channels,) float32, normalised
    places: dict[int, np.ndarray]  # label: (n, 3) voxels of it


class Survey:
    """Checks and reads cases; the plan says what may be assumed of them."""

    def __init__(
        self,
        folder: CaseFolder,
        masked: Sequence[bool],
        zero: Sequence[float | None],
        max_label: int | None,
        ignored: Sequence[int] = (),
    ) -> None:
        """What holds for all cases.

        Args:
            masked: for each channel whether nnU-Net normalised inside the non-zero mask only; what is outside holds the
                meaningless 0 and becomes background here.
            zero: for each channel the normalised value of the source's 0, None where unknown.
            max_label: the largest label that may occur; None: any.
            ignored: labels that no crop is centred on.
        """
        self.folder, self.masked, self.zero = folder, np.array(masked, bool), zero
        self.max_label, self.ignored = max_label, ignored

    def of(self, names: Sequence[str], n_values: int = 0) -> tuple[list[SurveyedCase], np.ndarray]:
        """Check the cases ``names``.

        Args:
            n_values: voxels to sample of each case.

        Returns:
            The cases, and the normalised values of the sampled voxels, (channels, number).

        Raises:
            InputError: values that are not finite, labels that are not expected, or files that cannot be read.
        """
        looked_at = [self._look_at(name, n_values) for name in names]
        none = np.empty((self.folder.n_channels, 0), np.float32)
        return [case for case, _ in looked_at], np.concatenate([none, *(values for _, values in looked_at)], axis=1)

    def read(
        self, case: SurveyedCase, start: Voxel, stop: Voxel, *, with_labels: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Values (channels, Z, Y, X) and labels (Z, Y, X), uint8, from ``start`` to before ``stop``.

        Either end may lie beyond the case, where there is background.
        """
        first = [max(begin, 0) for begin in start]
        last = [min(end, n) for end, n in zip(stop, case.size, strict=True)]
        needed = with_labels or bool(self.masked.any())
        values, ids = self.folder.read(case.name, tuple(first), tuple(last), with_labels=needed)
        self._fill(values, ids, case.background)
        margins = [(a - b, d - c) for a, b, c, d in zip(first, start, last, stop, strict=True)]
        labels = np.pad(np.maximum(ids, 0), margins).astype(np.uint8) if with_labels else None
        if not any(map(any, margins)):
            return values, labels
        channels = zip(values, case.background, strict=True)
        return np.stack([np.pad(channel, margins, constant_values=nothing) for channel, nothing in channels]), labels

    def _look_at(self, name: str, n_values: int) -> tuple[SurveyedCase, np.ndarray]:
        values, ids = self.folder.read(name)
        path = self.folder.file(name)
        if not np.isfinite(values).all():
            problem = f"{int((~np.isfinite(values)).sum())} values that are not finite"
            raise InputError(problem, where=path, fix="mend the raw image, then " + PREPROCESS)
        labels = {int(label) for label in np.unique(ids)} - {0, OUTSIDE}
        if self.max_label is not None and labels and not 0 < min(labels) <= max(labels) <= self.max_label:
            problem = f"labels {sorted(labels)} where 1 to {self.max_label} are generated"
            raise InputError(problem, where=path, fix="number the labels without gaps or ignore, or generate none")
        draws = np.random.default_rng(derive_seed("survey", name))
        places = {label: _places(ids == label, draws) for label in sorted(labels - set(self.ignored))}
        background = self._background(values, ids)
        self._fill(values, ids, background)
        flat = values.reshape(len(values), -1)
        drawn = flat[:, draws.integers(0, flat.shape[1], n_values)]
        return SurveyedCase(name, values.shape[1:], background, places), drawn

    def _background(self, values: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The least value of each channel; of a masked one, of what is inside, and no more than the source's 0."""
        inside = ids != OUTSIDE
        least = []
        for channel, masked, zero in zip(values, self.masked, self.zero, strict=True):
            if not masked:
                least.append(channel.min())
                continue
            known = [] if zero is None else [zero]
            least.append(min([channel.min(where=inside, initial=np.inf), *known]) if inside.any() else zero or 0.0)
        return np.array(least, np.float32)

    def _fill(self, values: np.ndarray, ids: np.ndarray, background: np.ndarray) -> None:
        outside = ids == OUTSIDE
        if outside.any():
            for channel in np.flatnonzero(self.masked):
                values[channel][outside] = background[channel]


def window_of(values: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The values of each channel that become -1 and 1: robust percentiles of ``values``, (channels, number).

    A constant channel has a window of width 1 from its value on, so that it becomes -1 everywhere.
    """
    windows = []
    for channel, row in enumerate(values):
        low, high = (float(end) for end in np.percentile(row, WINDOW_PERCENTILES))
        if high - low <= 1e-6 * max(abs(low), abs(high), 1):
            low, high = float(row.min()), float(row.max())  # of what is sparse, such as vessels in black
        if high - low <= 1e-6 * max(abs(low), abs(high), 1):
            log.warning("channel %d is the same everywhere", channel)
            high = low + 1
        windows.append((low, high))
    return tuple(windows)


def _places(inside: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """At most ``N_PLACES`` voxels of ``inside``, (n, 3)."""
    flat = np.flatnonzero(inside)
    if len(flat) > N_PLACES:
        flat = np.sort(draws.choice(flat, N_PLACES, replace=False))
    smallest = np.min_scalar_type(max(inside.shape))
    return np.stack(np.unravel_index(flat, inside.shape), axis=1).astype(smallest)
