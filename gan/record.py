"""What a person sees of a training beside its curves: the card and TensorBoard's events, as it goes on.

The only files of a training that hold times are those of ``TIMED``; all others are the same, byte for byte, in every
run of one training on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.settings import to_dict
from gan.privacy import Population, privacy_record
from gan.settings import GanSettings
from training.card import CARD, CARD_TEXT, TrainingCard
from training.curves import EVENTS, Events, Rows
from training.pictures import remove_sheets_after

TIMED = (CARD, CARD_TEXT, EVENTS)
ABOUT = "A StyleGAN2 shaped by nnU-Net's plan, with DiffAugment."


class Record:
    """The record of one training; ``begin`` when it begins or is resumed, ``snapshot`` at every snapshot.

    Of ``images`` (n, channels, height, width) only shape and type are written down.
    """

    def __init__(
        self,
        out: Path,
        images: np.ndarray,
        settings: GanSettings,
        seed: int,
        device: torch.device,
        population: Population | None = None,
    ) -> None:
        self.population = population or Population(len(images))
        self.out, self.images, self.settings, self.seed = out, images, settings, seed
        self._card = TrainingCard(out, device, "Generator", "gan.sample")
        self._events: Events | None = None

    def begin(self, rows: Rows, kimg: float) -> None:
        """Take up the history of a training resumed at ``kimg`` (at 0 there is none); sheets of its future go."""
        remove_sheets_after(self.out, kimg)
        self._events = Events(self.out)
        if kimg:
            self._card.resume()
            self._events.add(rows, kimg)

    def snapshot(self, rows: Rows, kimg: float, chosen: Mapping[str, Any] | None = None) -> None:
        """Write the card of now, and the new points of the curves.

        Args:
            rows: the curves so far; the last one is what the card calls scores.
            chosen: ``{"kimg": ..., "rule": ...}`` of the weights in ``generator.safetensors``; None: the last ones.
        """
        settings = self.settings
        n_images, n_channels, height, width = self.images.shape
        privacy = privacy_record(settings, self.population, round(kimg * 1000 / settings.config.batch_size))
        data = {"n_images": n_images, "height_px": height, "width_px": width, "n_channels": n_channels}
        facts = {
            "generator": "stylegan2",
            "is_finished": kimg >= settings.n_steps * settings.config.batch_size / 1000 - 1e-6,
            "data": {**data, "dtype": str(self.images.dtype)},
            "settings": to_dict(settings),
            "privacy": privacy,
            "seed": self.seed,
            "scores": {key: value for key, value in (rows[-1] if rows else {}).items() if key not in ("step", "unit")},
            "snapshot": dict(chosen or {"kimg": kimg, "rule": "last"}),
        }
        self._card.write(
            facts,
            kimg,
            settings.kimg,
            about=ABOUT,
            trained_on=f"{n_images} images, {height} x {width} px, {n_channels} channels, {self.images.dtype}",
            length_note=f"; each image {kimg * 1000 / n_images:.0f} times",
            more_rows={"differential privacy": _privacy_text(privacy)},
        )
        if self._events is not None:
            self._events.add(rows, kimg)

    def close(self) -> None:
        """Finish the events."""
        if self._events is not None:
            self._events.close()


def _privacy_text(privacy: Mapping[str, Any] | None) -> str:
    if privacy is None:
        return "none: the filter is evidence that no patient was copied, and not a guarantee"
    return (
        f"epsilon {privacy['epsilon']:.3f} at delta {privacy['delta']:.3g} for {privacy['unit']}: noise of "
        f"{privacy['noise_multiplier']:.3f} clipping norms of {privacy['clip_norm']:g}, sampling rate "
        f"{privacy['sampling_rate']:.3g}, {privacy['n_steps']} steps. {_patient_text(privacy['patient'])} It covers "
        "the weights and what is made of them, not labels, filter, plan, intensity window or the number of images"
    )


def _patient_text(patient: Mapping[str, Any] | None) -> str:
    if patient is None:
        return "A patient with several images has a larger epsilon, which is not known: nobody said whose they are."
    return (
        f"For one patient with all images (at most {patient['most_images']}) epsilon is {patient['epsilon']:.3f} at "
        "the same delta."
    )
