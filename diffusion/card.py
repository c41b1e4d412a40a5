"""The card in a checkpoint's folder: what a model was trained on, how, how long and how well, and how to sample it.

Counts only: no patient, no path, no name of a machine. It says how many images the site has, so it stays at the site.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.files import write_json, write_text
from common.settings import to_dict
from diffusion.data import Data
from diffusion.settings import DiffusionSettings
from training.card import CARD, CARD_TEXT, machine_kind, seconds_so_far

SCHEMA_VERSION = 1


class Card:
    """Written at every epoch; seconds add up over all the times a training was resumed."""

    def __init__(self, out: Path, data: Data, settings: DiffusionSettings, seed: int, device: str) -> None:
        self.out, self.settings, self.seed = out, settings, seed
        self.n_items, self.device = data.n_items, torch.device(device)
        self._seconds_before, self._started_s = seconds_so_far(out), time.monotonic()

    def write(self, rows: Sequence[Mapping[str, Any]], kimg: float, chosen: Mapping[str, Any] | None = None) -> None:
        """``card.json`` and, of the same content for people, ``card.md``."""
        seconds = self._seconds_before + time.monotonic() - self._started_s
        settings = self.settings
        card = {
            "schema_version": SCHEMA_VERSION,
            "generator": "ddpm" if settings.autoencoder is None else "ldm",
            "is_finished": chosen is not None,
            "data": {"n_images": self.n_items, "size": list(settings.image_size), "n_channels": settings.n_channels},
            "settings": to_dict(settings),
            "seed": self.seed,
            "length": {"kimg": kimg, "planned_kimg": settings.kimg},
            "time": {
                "seconds": round(seconds, 1),
                "seconds_per_kimg": round(seconds / kimg, 2) if kimg else None,
                "machine": machine_kind(self.device),
            },
            "scores": {key: value for row in rows[-2:] for key, value in row.items() if key not in ("step", "unit")},
            "snapshot": dict(chosen or {"kimg": kimg, "rule": "last"}),
        }
        write_json(self.out / CARD, card)
        write_text(self.out / CARD_TEXT, _text(card))


def _text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    data, spent, length = card["data"], card["time"], card["length"]
    state = "" if card["is_finished"] else " Still in training, or stopped: these are the figures of its last epoch."
    what = "in the latents of an autoencoder" if card["generator"] == "ldm" else "in pixels"
    size = " x ".join(str(n) for n in data["size"])
    scores = "".join(f"| {name} | {value:.4g} |\n" for name, value in card["scores"].items())
    settings = "\n".join(
        f"    {line}" for line in json.dumps(card["settings"]["config"], sort_keys=True, indent=1).splitlines()
    )
    return f"""# Diffusion model

A diffusion model {what}, shaped by nnU-Net's plan.{state}

| | |
| --- | --- |
| trained on | {data["n_images"]} images or volumes, {size}, {data["n_channels"]} channels |
| length | {length["kimg"]:g} of {length["planned_kimg"]:g} kimg (thousand images shown) |
| time | {spent["seconds"] / 60:.1f} min on {spent["machine"]} |
| weights | of {card["snapshot"]["kimg"]:g} kimg, rule: {card["snapshot"]["rule"]} |
| seed | {card["seed"]} |

## Scores at the end of the curves

| | |
| --- | --- |
{scores}
They say whether training is steady, not whether images may be shared: that is what the filter and an eye are for.

## Sampling

    python -m diffusion.sample --checkpoint generator.safetensors --n 64 --sheet

## Settings

{settings}
"""
