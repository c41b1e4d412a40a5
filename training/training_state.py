"""The state of a training on disk: networks and optimisers as named tensors, and whether a file is of this training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.settings import to_dict

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def check_same_run(path: Path, metadata: Mapping[str, Any], settings: Any, seed: int) -> None:
    """Refuse to go on from the file of another training.

    Args:
        metadata: of the safetensors file ``path``; it has the keys ``settings`` and ``seed``.
        settings: the dataclass with which this training was started.

    Raises:
        InputError: the file has other settings or another seed.
    """
    if metadata["settings"] != to_dict(settings) or metadata["seed"] != seed:
        raise InputError("its settings or seed are not this training's", where=path, fix="delete the folder")


def state_to_tensors(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Weights as ``<module>.<key>`` and the moments of Adam as ``<optimizer>.adam.<index>.<key>``."""
    import torch

    tensors = {
        f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.adam.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def load_state(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Put both into the state that ``state_to_tensors`` described."""
    for name, module in modules.items():
        module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(_adam_state(optimizer, tensors, f"{name}.adam."))


def _adam_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, object]:
    import torch

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
