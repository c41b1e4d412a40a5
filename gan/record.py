"""What a person sees of a training beside its curves: the card and TensorBoard's events, as it goes on.

The only files of a training that hold times are those of ``TIMED``; all others are the same, byte for byte, in every
run of one training on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan.card import build_card, write_card
from gan.settings import GanSettings
from training.card import CARD, CARD_TEXT, seconds_so_far
from training.events import EVENTS, Events
from training.pictures import SHEETS, kimg_of_sheet

TIMED = (CARD, CARD_TEXT, EVENTS)

Rows = Sequence[Mapping[str, Any]]


class Record:
    """Begun when a training begins or is resumed, told of every snapshot."""

    def __init__(self, out: Path, images: np.ndarray, settings: GanSettings, seed: int, device: torch.device) -> None:
        self.out, self.images, self.settings, self.seed, self.device = out, images, settings, seed, device
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._events: Events | None = None

    def begin(self, rows: Rows, kimg: float) -> None:
        """Take up the history of a training resumed at ``kimg`` (at 0 there is none); sheets of its future go."""
        for sheet in (self.out / SHEETS).glob("kimg_*.png"):
            if kimg_of_sheet(sheet) > kimg:
                sheet.unlink()
        self._seconds_before = seconds_so_far(self.out) if kimg else 0.0
        self._events = Events(self.out)
        if kimg:
            self._events.add(rows, kimg)

    def snapshot(self, rows: Rows, kimg: float, chosen: Mapping[str, Any] | None = None) -> None:
        """The card of now, and the new points; ``chosen`` as in ``build_card``."""
        seconds = self._seconds_before + time.monotonic() - self._started
        arguments = (self.images, self.settings, self.seed, rows, kimg, seconds, self.device, chosen)
        write_card(self.out, build_card(*arguments))
        if self._events is not None:
            self._events.add(rows, kimg)

    def close(self) -> None:
        """No more points will come."""
        if self._events is not None:
            self._events.close()
