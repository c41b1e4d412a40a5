"""The state of a training on disk: networks and optimisers as named tensors and back, and what a resume checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.settings import to_dict

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

RESULT = "generator.safetensors"  # of a training
GIVE_RESULT = f"give the {RESULT} in the folder of a training, runs/<exp_name>/fold_<k>/generator/<site>"


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


def check_checkpoint_exists(path: Path) -> None:
    """InputError unless ``path`` is a file; the fix names what lies beside it, or where one is usually found."""
    if path.is_dir():
        raise InputError("this is a folder, not a checkpoint", where=path, fix=f"give {path / RESULT}")
    if not path.is_file():
        found = sorted(path.parent.glob("*.safetensors"))
        fix = f"give {' or '.join(str(file) for file in found)}" if found else GIVE_RESULT
        raise InputError("there is no such file", where=path, fix=fix)


def remove_half_written(*folders: Path) -> None:
    """Delete what a killed training was writing: temporary siblings of its files (``common.files.atomic_path``)."""
    for folder in folders:
        for leftover in folder.glob(".*.*"):
            if leftover.is_file():
                leftover.unlink()


def state_to_tensors(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """All that a training needs to go on bit for bit, except random numbers.

    Weights are named ``<module>.<key>``, the moments of Adam ``<optimizer>.adam.<index>.<key>``; an optimiser whose
    name is empty has no prefix.
    """
    import torch

    tensors = {
        f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{_adam(name)}{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def load_state(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Put both into the state that ``state_to_tensors`` described."""
    import torch

    for name, module in modules.items():
        module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for full_name in tensors:
            if full_name.startswith(_adam(name)):
                number, key = full_name.removeprefix(_adam(name)).split(".")
                state.setdefault(int(number), {})[key] = tensors[full_name]
        parameters = optimizer.param_groups[0]["params"]
        for index, moments in state.items():
            for key in moments.keys() - {"step"}:  # in the memory order of their parameter: a fused step needs it
                moments[key] = torch.empty_like(parameters[index]).copy_(moments[key])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _adam(name: str) -> str:
    return f"{name}.adam." if name else "adam."
