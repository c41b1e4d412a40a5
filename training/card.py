"""The card in a training's folder: what was trained on, how, how long and how well, and how to sample it.

Counts only: no patient, no path, no name of a machine. It says how many images the site has, so it stays at the site.
"""

from __future__ import annotations

import json
import platform
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import torch

CARD, CARD_TEXT = "card.json", "card.md"
SCHEMA_VERSION = 1


class TrainingCard:
    """``card.json`` and, for people, ``card.md``; seconds add up over all the times a training was resumed.

    Args:
        title: heading of ``card.md``.
        sample_command: the module that samples, such as ``gan.sample``.
    """

    def __init__(self, out: Path, device: torch.device, title: str, sample_command: str) -> None:
        self.out, self.device, self.title, self.sample_command = out, device, title, sample_command
        self._seconds_before, self._started_s = 0.0, time.monotonic()

    def resume(self) -> None:
        """Go on from the seconds on the card of an interrupted training; from 0 where there is none to read."""
        try:
            self._seconds_before = float(read_json(self.out / CARD)["time"]["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            self._seconds_before = 0.0

    def write(
        self,
        facts: Mapping[str, Any],
        kimg: float,
        planned_kimg: float,
        *,
        about: str,
        trained_on: str,
        length_note: str = "",
        more_rows: Mapping[str, str] | None = None,
    ) -> None:
        """Write both files after ``kimg`` thousand images.

        Args:
            facts: ``generator``, ``is_finished``, ``data``, ``settings``, ``seed``, ``scores``, ``snapshot`` (``kimg``
                and ``rule`` of the weights), and what else the generator has to say.
            about: the first sentence of ``card.md``; the others are for its table.
        """
        seconds = self._seconds_before + time.monotonic() - self._started_s
        seconds_per_kimg = round(seconds / kimg, 2) if kimg else None
        machine = machine_kind(self.device)
        spent = {"seconds": round(seconds, 1), "seconds_per_kimg": seconds_per_kimg, "machine": machine}
        length = {"kimg": kimg, "planned_kimg": planned_kimg}
        write_json(self.out / CARD, {"schema_version": SCHEMA_VERSION, **facts, "length": length, "time": spent})

        state = " Still in training, or stopped: the figures are those of its last snapshot."
        rows = {
            "trained on": trained_on,
            "length": f"{kimg:g} of {planned_kimg:g} kimg (thousand images shown){length_note}",
            "time": f"{seconds / 60:.1f} min on {machine}, {_number(seconds_per_kimg)} s/kimg",
            "weights": f"of {facts['snapshot']['kimg']:g} kimg, rule: {facts['snapshot']['rule']}",
            "seed": str(facts["seed"]),
            **(more_rows or {}),
        }
        scores = "\n".join(f"| {name} | {_number(value)} |" for name, value in facts["scores"].items())
        table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
        settings = textwrap.indent(json.dumps(facts["settings"]["config"], sort_keys=True, indent=1), "    ")
        text = f"""# {self.title}

{about}{"" if facts["is_finished"] else state}

| | |
| --- | --- |
{table}

## Scores at the end of the curves

| | |
| --- | --- |
{scores}

They say whether training is steady, not whether images may be shared: that is what the filter and an eye are for.

## Sampling

    python -m {self.sample_command} --checkpoint generator.safetensors --n 64 --sheet

## Settings

{settings}
"""
        write_text(self.out / CARD_TEXT, text)


def _number(value: Any) -> str:
    """Four digits, or a dash where there is no number."""
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"


def machine_kind(device: torch.device) -> str:
    """``NVIDIA H200`` or ``CPU (x86_64), 2 threads``: a kind, never a name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} ({platform.machine()}), {torch.get_num_threads()} threads"
