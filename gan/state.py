"""The phases of a training as named tensors and back: weights, averages and the optimisers' moments."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gan.train_step import TrainStep
from training.training_state import load_state, state_to_tensors


def phases_to_tensors(phases: TrainStep) -> dict[str, Tensor]:
    """All that a resumed training needs to go on bit for bit, its random numbers apart: they follow from the step."""
    tensors = state_to_tensors(phases.modules(), phases.optimizers)
    return {**tensors, "mean_path_length": phases.mean_path_length}


def load_phases(phases: TrainStep, tensors: Mapping[str, Tensor]) -> None:
    """Put ``phases`` into the state that ``phases_to_tensors`` described."""
    load_state(phases.modules(), phases.optimizers, tensors)
    phases.mean_path_length = tensors["mean_path_length"].to(phases.device)
