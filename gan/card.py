"""The card in a checkpoint's folder: what a generator was trained on, how, how long, how well, and how to sample it.

Counts only: no patient, no path, no name of a machine. It says how many images the site has, so it stays at the site.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import write_json, write_text
from common.settings import to_dict
from gan.privacy import privacy_record
from gan.settings import GanSettings
from training.card import CARD, CARD_TEXT, machine_kind

SCHEMA_VERSION = 1
LAST = "last"  # the rule by which the snapshot was chosen


def build_card(
    images: np.ndarray,
    settings: GanSettings,
    seed: int,
    rows: Sequence[Mapping[str, Any]],
    kimg: float,
    seconds: float,
    device: torch.device,
    snapshot: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card after ``kimg`` thousand images.

    Args:
        images: (n, channels, height, width), of which only shape and type are written down.
        rows: the curves so far; the last one is what the card calls scores.
        seconds: of training, over all the times it was resumed.
        snapshot: ``{"kimg": ..., "rule": ...}`` of the weights in ``generator.safetensors``; None: the last ones.
    """
    n_images, n_channels, height, width = images.shape
    size = {"height_px": height, "width_px": width, "n_channels": n_channels, "dtype": str(images.dtype)}
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": "stylegan2",
        "is_finished": kimg >= settings.n_steps * settings.config.batch_size / 1000 - 1e-6,
        "data": {"n_images": n_images, **size},
        "settings": to_dict(settings),
        "privacy": privacy_record(settings, n_images, round(kimg * 1000 / settings.config.batch_size)),
        "seed": seed,
        "length": {"kimg": kimg, "planned_kimg": settings.kimg},
        "time": {
            "seconds": round(seconds, 1),
            "seconds_per_kimg": round(seconds / kimg, 2) if kimg else None,
            "machine": machine_kind(device),
        },
        "scores": {key: value for key, value in (rows[-1] if rows else {}).items() if key not in ("step", "unit")},
        "snapshot": dict(snapshot or {"kimg": kimg, "rule": LAST}),
    }


def write_card(out: Path, card: Mapping[str, Any]) -> None:
    """Write ``card.json`` and, of the same content for people, ``card.md``."""
    write_json(out / CARD, card)
    write_text(out / CARD_TEXT, card_text(card))


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    data, time, length, config = card["data"], card["time"], card["length"], card["settings"]["config"]
    state = "" if card["is_finished"] else " Still in training, or stopped: these are the figures of its last snapshot."
    shown = length["kimg"] * 1000 / data["n_images"]
    scores = "".join(f"| {name} | {_number(value)} |\n" for name, value in card["scores"].items())
    chosen = json.dumps(config, sort_keys=True, indent=1)
    what = f"{data['n_images']} images, {data['height_px']} x {data['width_px']} px, {data['n_channels']} channels"
    return f"""# Generator

A StyleGAN2 shaped by nnU-Net's plan, with DiffAugment.{state}

| | |
| --- | --- |
| trained on | {what}, {data["dtype"]} |
| length | {length["kimg"]:g} of {length["planned_kimg"]:g} kimg (thousand images shown); each image {shown:.0f} times |
| time | {time["seconds"] / 60:.1f} min on {time["machine"]}, {_number(time["seconds_per_kimg"])} s/kimg |
| weights | of {card["snapshot"]["kimg"]:g} kimg, rule: {card["snapshot"]["rule"]} |
| seed | {card["seed"]} |
| differential privacy | {_privacy_text(card["privacy"])} |

## Scores at the end of the curves

| | |
| --- | --- |
{scores}
They say whether training is steady, not whether images may be shared: that is what the filter and an eye are for.

## Sampling

    python -m gan.sample --checkpoint generator.safetensors --n 64 --sheet

## Settings

{_indented(chosen)}
"""


def _privacy_text(privacy: Mapping[str, Any] | None) -> str:
    if privacy is None:
        return "none: the filter is evidence that no patient was copied, and not a guarantee"
    return (
        f"epsilon {privacy['epsilon']:.3f} at delta {privacy['delta']:.3g} for {privacy['unit']}: noise of "
        f"{privacy['noise_multiplier']:.3f} clipping norms of {privacy['clip_norm']:g}, sampling rate "
        f"{privacy['sampling_rate']:.3g}, {privacy['n_steps']} steps. It covers the weights and what is made of them "
        "alone, not labels, filter or plan; for a patient of k images epsilon is k times that"
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
