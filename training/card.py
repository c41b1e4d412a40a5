"""What the cards of generators' trainings have in common: their files, the kind of machine, the time so far."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import read_json

if TYPE_CHECKING:
    import torch

CARD, CARD_TEXT = "card.json", "card.md"


def seconds_so_far(out: Path) -> float:
    """What the card of an interrupted training says it took; 0 where there is none to read."""
    try:
        return float(read_json(out / CARD)["time"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def machine_kind(device: torch.device) -> str:
    """``NVIDIA H200`` or ``CPU (x86_64), 2 threads``: a kind, never a name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} ({platform.machine()}), {torch.get_num_threads()} threads"
