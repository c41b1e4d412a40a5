"""The part that the trainings of autoencoder and denoiser share: steps, epochs, checkpoints, parts and processes.

Every random number of step i comes from a generator seeded by (seed, i, purpose), drawn for the whole batch: parts of a
batch and the processes' images add up to the batch, and a resumed training needs no generator's state.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.seeds import derive_seed
from common.settings import to_dict
from diffusion.data import Data
from diffusion.settings import AutoencoderSettings, DiffusionSettings
from training.batch_shard import BatchShard
from training.curves import is_curve_point, write_curves
from training.training_state import check_same_run, load_state, state_to_tensors

log = logging.getLogger(__name__)

WARM_UP_STEPS = 100  # over which the learning rate rises
LARGEST_GRADIENT_NORM = 1.0


class Training(ABC):
    """Networks, optimisers and the step that they have reached; subclasses define a step."""

    checkpoint: ClassVar[str]
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(
        self,
        data: Data,
        settings: DiffusionSettings,
        seed: int,
        device: torch.device,
        shard: BatchShard,
        lengths: AutoencoderSettings | DiffusionSettings,
    ) -> None:
        self.data, self.settings, self.seed, self.device, self.shard = data, settings, seed, device, shard
        self.n_epochs, self.steps_per_epoch = lengths.n_epochs, lengths.steps_per_epoch
        self.batch_size, self.n_accumulated = lengths.batch_size, lengths.n_accumulated
        self.step = 0
        self.rows: list[dict[str, float | str]] = []

    @abstractmethod
    def update(self) -> Mapping[str, Tensor]:
        """One step of every optimiser; what it measured, one number each."""

    @abstractmethod
    def on_epoch_end(self, out: Path) -> Mapping[str, float]:
        """Validate, and now and then draw, on one process at the end of an epoch; returns scores for the curves."""

    @property
    def n_steps(self) -> int:
        """Of the whole training."""
        return self.n_epochs * self.steps_per_epoch

    @property
    def kimg(self) -> float:
        """Thousand images shown so far."""
        return round(self.step * self.batch_size / 1000, 6)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.steps_per_epoch

    def advance(self) -> None:
        """One step.

        Raises:
            RuntimeError: a measured value is not finite.
        """
        measured = self.update()
        self.step += 1
        values = dict(zip(measured, torch.stack([v.float() for v in measured.values()]).tolist(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            raise RuntimeError(f"{type(self).__name__} diverged at step {self.step} of {self.n_steps}: {values}")
        if is_curve_point(self.step, self.n_steps):
            self.rows.append({"step": self.kimg, "unit": "kimg", **values})

    def end_epoch(self, out: Path) -> None:
        """Write scores, pictures and curves first, then the checkpoint to resume from."""
        scores = self.on_epoch_end(out)
        if scores:
            self.rows.append({"step": self.kimg, "unit": "kimg", **scores})
        write_curves(out, self.rows)
        metadata = {"step": self.step, "rows": self.rows, **self.more_state(), **self.metadata()}
        save_tensors(out / self.checkpoint, state_to_tensors(self.modules, self.optimizers), metadata)

    def metadata(self) -> dict[str, Any]:
        """What every file of this training says of it; ``facts`` is how samples are written."""
        return {"settings": to_dict(self.settings), "seed": self.seed, "facts": dict(self.data.output_spec)}

    def more_state(self) -> dict[str, Any]:
        """JSON-able state of a subclass."""
        return {}

    def load_more_state(self, metadata: Mapping[str, Any]) -> None:
        """Take over what ``more_state`` gave; InputError where something of it is missing."""
        if missing := self.more_state().keys() - metadata.keys():
            raise InputError(f"it lacks {sorted(missing)}", where=self.checkpoint, fix="delete the folder")

    def resume(self, out: Path) -> None:
        """Go on from the checkpoint in ``out``, if there is one; InputError if it is of another training."""
        path = out / self.checkpoint
        if not path.is_file():
            return
        tensors, metadata = load_tensors(path)
        check_same_run(path, metadata, self.settings, self.seed)
        load_state(self.modules, self.optimizers, tensors)
        self.step, self.rows = metadata["step"], metadata["rows"]
        self.load_more_state(metadata)
        log.info("resumed %s at step %d of %d", self.checkpoint, self.step, self.n_steps)

    def draws(self, purpose: str) -> torch.Generator:
        """Random numbers of this step for one purpose, on the CPU."""
        return torch.Generator().manual_seed(derive_seed(self.seed, self.step, purpose))

    def parts(self, *whole: Tensor) -> Iterator[tuple[float, list[Tensor]]]:
        """This process's share of a batch, part by part: ``(weight, tensors)``; weights of a share add up to 1."""
        own = [self.shard.of(tensor) for tensor in whole]
        n_own, n_parts = len(own[0]), self.n_accumulated
        for part in zip(*(tensor.split(-(-n_own // n_parts)) for tensor in own), strict=True):
            yield len(part[0]) / n_own, [tensor.to(self.device, non_blocking=True) for tensor in part]

    def apply_gradients(self, name: str, network: nn.Module, learning_rate: float) -> Tensor:
        """Mean over the processes, clipped, one step of Adam; the gradient's norm before clipping."""
        self.shard.average([p.grad for p in network.parameters() if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT_NORM)
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (self.step + 1) / WARM_UP_STEPS)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def low_precision(self) -> AbstractContextManager[None]:
        """bfloat16 where the settings say so; it has the range of float32, so that nothing need be scaled."""
        return autocast(self.device, self.settings.precision)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which networks compute."""
    made: AbstractContextManager[None] = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    return made
