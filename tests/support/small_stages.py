"""Stages of a small experiment that need no data: each writes one file; a training counts its steps."""

from __future__ import annotations

import os
from pathlib import Path

from engine.run_stage import StageContext


def write(context: StageContext) -> None:
    """Write what the inputs say, then the stage's own word."""
    words = [(folder / "result.txt").read_text() for _, folder in sorted(context.inputs.items())]
    (context.out / "result.txt").write_text(" ".join([*words, str(context.stage.settings["word"])]))


def train(context: StageContext) -> None:
    """Ten steps with a checkpoint after each; stops with an error at the step that ``stop_at`` names."""
    checkpoint, attempts = context.out / "checkpoint.txt", context.out / "attempts.txt"
    step = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    with attempts.open("a") as stream:
        stream.write(f"from {step}\n")
    stop_at = (context.out.parents[2] / "stop_at").exists()
    while step < 10:
        step += 1
        checkpoint.write_text(str(step))
        if stop_at and step == 4:
            raise RuntimeError("stopped on purpose")
    write(context)


def die_once(context: StageContext) -> None:
    """Take the worker down on the first attempt."""
    marker = Path(context.stage.environment["marker"])
    if not marker.exists():
        marker.write_text("died")
        os._exit(1)
    (context.out / "result.txt").write_text("second attempt")


def fail(context: StageContext) -> None:
    """An error of the stage's own, which no retry mends."""
    path = Path(context.stage.environment["marker"])
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    raise ValueError("the lesion is not there")
