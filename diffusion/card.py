"""The card of a diffusion model's training (``training.card``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.settings import to_dict
from diffusion.data import Data
from diffusion.settings import DiffusionSettings
from training.card import TrainingCard


class Card:
    """Written at every epoch; seconds add up over all the times a training was resumed."""

    def __init__(self, out: Path, data: Data, settings: DiffusionSettings, seed: int, device: str) -> None:
        self.settings, self.seed, self.n_items = settings, seed, data.n_items
        self._card = TrainingCard(out, torch.device(device), "Diffusion model", "diffusion.sample")
        self._card.resume()

    def write(self, rows: Sequence[Mapping[str, Any]], kimg: float, chosen: Mapping[str, Any] | None = None) -> None:
        """``card.json`` and, of the same content for people, ``card.md``; ``chosen`` where the training is finished."""
        settings = self.settings
        is_latent = settings.autoencoder is not None
        facts = {
            "generator": "ldm" if is_latent else "ddpm",
            "is_finished": chosen is not None,
            "data": {"n_images": self.n_items, "size": list(settings.image_size), "n_channels": settings.n_channels},
            "settings": to_dict(settings),
            "seed": self.seed,
            "scores": {key: value for row in rows[-2:] for key, value in row.items() if key not in ("step", "unit")},
            "snapshot": dict(chosen or {"kimg": kimg, "rule": "last"}),
        }
        size = " x ".join(str(n) for n in settings.image_size)
        where = "in the latents of an autoencoder" if is_latent else "in pixels"
        self._card.write(
            facts,
            kimg,
            settings.kimg,
            about=f"A diffusion model {where}, shaped by nnU-Net's plan.",
            trained_on=f"{self.n_items} images or volumes, {size}, {settings.n_channels} channels",
        )
