"""Training: four phases a step at most, exact resume, curves and sample sheets.

Every random number of step i comes from a generator seeded by (seed, i, purpose), so that a resumed training needs no
generator state to draw what an undisturbed one draws.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.files import write_text
from common.progress import Progress, silent
from common.seeds import derive_seed
from common.settings import to_dict
from gan.batches import Batches
from gan.phases import Phases
from gan.pictures import INTERPOLATION, SHEET, SHEETS, write_pictures
from gan.record import TIMED, Record
from gan.settings import GanSettings

log = logging.getLogger(__name__)

CHECKPOINT = "training.safetensors"
RESULT = "generator.safetensors"
CURVES = "curves.jsonl"
N_CURVE_POINTS = 200
CURVE_KEYS = ("step", "unit", "loss_g", "loss_d", "r1", "path_length", "real_logit", "fake_logit")


def train(
    images: np.ndarray,
    out: Path,
    settings: GanSettings,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> None:
    """Train on ``images`` (n, channels, height, width), uint8 or uint16, and write the averaged generator.

    Writes ``generator.safetensors`` (EMA weights, settings), ``curves.jsonl``, pictures (``gan.pictures``), and the
    card and events of ``gan.record``; while it runs also ``training.safetensors``, from which the same call resumes:
    N + N steps equal 2 N bit for bit on a CPU.

    Raises:
        InputError: images that fit neither the plan nor a training.
        RuntimeError: the training diverged.
    """
    batches = Batches(images, settings, seed)
    _remove_half_written(out)
    if (out / RESULT).is_file():
        _check_same_run(out / RESULT, load_tensors(out / RESULT)[1], settings, seed)
        (out / CHECKPOINT).unlink(missing_ok=True)
        return
    run = Training(batches, settings, seed, torch.device(device))
    run.resume(out)
    record = Record(out, images, settings, seed, run.phases.device)
    record.begin(run.rows, run.kimg_at(run.step))
    interval = max(1, math.ceil(settings.n_steps / settings.config.n_snapshots))
    while run.step < settings.n_steps:
        run.advance()
        if run.step % interval == 0 or run.step == settings.n_steps:
            run.snapshot(out)
            record.snapshot(run.rows, run.kimg_at(run.step))
        progress(run.kimg_at(run.step), run.kimg_at(settings.n_steps), "kimg")
    record.close()
    run.finish(out)


def _remove_half_written(out: Path) -> None:
    """A killed training may leave a temporary sibling of the file it was writing (``common.files.atomic_path``)."""
    for name in (CHECKPOINT, RESULT, CURVES, SHEET, INTERPOLATION, *TIMED):
        for leftover in out.glob(f".*.{name}"):
            leftover.unlink()
    for leftover in (out / SHEETS).glob(".*.png"):
        leftover.unlink()


def _check_same_run(path: Path, metadata: dict[str, Any], settings: GanSettings, seed: int) -> None:
    if metadata["settings"] != to_dict(settings) or metadata["seed"] != seed:
        raise InputError("its settings or seed are not this training's", where=path, fix="delete the folder")


class Training:
    """A training at some step: its phases, what was measured, and how to leave and find it on disk."""

    def __init__(self, batches: Batches, settings: GanSettings, seed: int, device: torch.device) -> None:
        self.batches, self.settings, self.seed = batches, settings, seed
        self.phases = Phases(settings, seed, device)
        self.step = 0
        self.dtype = str(batches.images.dtype)
        self.rows: list[dict[str, float | str]] = []
        self.measured: dict[str, float] = {}

    def advance(self) -> None:
        """One step: generator, path length every few steps, discriminator, R1 every few steps, weight average."""
        config, phases = self.settings.config, self.phases
        reals = self.batches.at(self.step).to(phases.device)
        measured = phases.generator_main(self._draws("generator"))
        if self.step % config.path_length_interval == 0:
            measured |= phases.path_length(self._draws("path length"))
        measured |= phases.discriminator_main(reals, self._draws("discriminator"))
        if self.step % config.r1_interval == 0:
            measured |= phases.r1(reals, self._draws("r1"))
        phases.average_weights()
        self.step += 1
        self.measured |= {name: value.item() for name, value in measured.items()}
        if not all(math.isfinite(value) for value in self.measured.values()):
            raise RuntimeError(
                f"the generator's training diverged at step {self.step} ({self.measured}); "
                "raise generator.settings.r1_gamma or lower generator.settings.learning_rate"
            )
        every = max(1, self.settings.n_steps // N_CURVE_POINTS)
        if self.step % every == 0 or self.step == self.settings.n_steps:
            self.rows.append({"step": self.kimg_at(self.step), "unit": "kimg", **self.measured})

    def kimg_at(self, step: int) -> float:
        """Thousand images shown after ``step`` steps."""
        return round(step * self.settings.config.batch_size / 1000, 6)

    def _draws(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, self.step, purpose))

    def snapshot(self, out: Path) -> None:
        """Curves and sheet first, then the point to resume from: what is on disk is never ahead of it for good."""
        write_text(out / CURVES, "".join(json.dumps({key: row[key] for key in CURVE_KEYS}) + "\n" for row in self.rows))
        write_pictures(self.phases.average, self.seed, out, self.kimg_at(self.step))
        tensors = {
            f"{name}.{key}": tensor
            for name, module in self.phases.modules().items()
            for key, tensor in module.state_dict().items()
        }
        for name, optimizer in self.phases.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.adam.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors["mean_path_length"] = self.phases.mean_path_length
        state_of_run = {"step": self.step, "rows": self.rows, "measured": self.measured}
        metadata = {**state_of_run, "settings": to_dict(self.settings), "seed": self.seed, "dtype": self.dtype}
        save_tensors(out / CHECKPOINT, tensors, metadata)

    def resume(self, out: Path) -> None:
        """Go on from the last checkpoint in ``out``, if there is one."""
        if not (out / CHECKPOINT).is_file():
            return
        tensors, metadata = load_tensors(out / CHECKPOINT)
        _check_same_run(out / CHECKPOINT, metadata, self.settings, self.seed)
        for name, module in self.phases.modules().items():
            module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
        for name, optimizer in self.phases.optimizers.items():
            optimizer.load_state_dict(_adam_state(optimizer, tensors, f"{name}.adam."))
        self.phases.mean_path_length = tensors["mean_path_length"].to(self.phases.device)
        self.step, self.rows, self.measured = metadata["step"], metadata["rows"], metadata["measured"]
        log.info("resumed at step %d of %d", self.step, self.settings.n_steps)

    def finish(self, out: Path) -> None:
        """The averaged generator alone; the state for resuming has done its work."""
        metadata = {"settings": to_dict(self.settings), "seed": self.seed, "dtype": self.dtype}
        save_tensors(out / RESULT, self.phases.average.state_dict(), metadata)
        (out / CHECKPOINT).unlink(missing_ok=True)


def _adam_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> dict[str, object]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _with_prefix(tensors, prefix):
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> Iterable[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))
