"""Stages of a small experiment that need no data: each writes one file; a training counts its steps."""

from __future__ import annotations

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
