"""What the toy's two kinds of stages do."""

from __future__ import annotations

import numpy as np

from common.files import read_json, write_json
from engine.run_stage import StageContext


def draw(context: StageContext) -> None:
    numbers = np.random.default_rng(context.seed).integers(100, size=context.stage.settings["n_numbers"])
    write_json(context.out / "numbers.json", {"numbers": numbers.tolist()})


def add(context: StageContext) -> None:
    drawn = [read_json(folder / "numbers.json")["numbers"] for folder in context.inputs.values()]
    write_json(context.out / "total.json", {"total": sum(map(sum, drawn))})
