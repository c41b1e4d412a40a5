"""The phases of a training as named tensors and back: weights, averages and the optimisers' moments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gan.phases import Phases


def phases_to_tensors(phases: Phases) -> dict[str, Tensor]:
    """All that a resumed training needs to go on bit for bit, its random numbers apart: they follow from the step."""
    tensors = {
        f"{name}.{key}": tensor
        for name, module in phases.modules().items()
        for key, tensor in module.state_dict().items()
    }
    for name, optimizer in phases.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.adam.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return {**tensors, "mean_path_length": phases.mean_path_length}


def load_phases(phases: Phases, tensors: Mapping[str, Tensor]) -> None:
    """Put ``phases`` into the state that ``phases_to_tensors`` described."""
    for name, module in phases.modules().items():
        module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
    for name, optimizer in phases.optimizers.items():
        optimizer.load_state_dict(_adam_state(optimizer, tensors, f"{name}.adam."))
    phases.mean_path_length = tensors["mean_path_length"].to(phases.device)


def _adam_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, object]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split(".")
            state.setdefault(int(index), {})[key] = tensor
    parameters = optimizer.param_groups[0]["params"]
    for parameter, moments in ((parameters[index], moments) for index, moments in state.items()):
        for key in moments.keys() - {"step"}:  # in the memory order of their parameter: a fused step needs it
            moments[key] = torch.empty_like(parameter).copy_(moments[key])
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
