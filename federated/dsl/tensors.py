"""Tensors as bytes between hub and sites, checked before use, and networks with their optimisers as flat tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def pack(**tensors: Tensor) -> bytes:
    """Safetensors bytes of ``tensors``."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def unpack(data: object, sender: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors that ``pack`` wrote; ``shapes`` are the expected names and shapes, -1 for any length.

    Raises:
        InputError: no safetensors bytes, other names or shapes, or floating-point numbers that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    fix = "see that site's log"
    if not isinstance(data, bytes):
        raise InputError(f"sent {type(data).__name__}, not bytes", where=sender, fix=fix)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"sent bytes that cannot be read ({error})", where=sender, fix=fix) from error
    if set(tensors) != set(shapes):
        raise InputError(f"sent {sorted(tensors)}, not {sorted(shapes)}", where=sender, fix=fix)
    for name, shape in shapes.items():
        tensor = tensors[name]
        fits = tensor.ndim == len(shape) and all(b in (-1, a) for a, b in zip(tensor.shape, shape, strict=True))
        if not fits:
            raise InputError(f"sent {name} of shape {list(tensor.shape)}, not {list(shape)}", where=sender, fix=fix)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"sent NaN or infinity in {name}", where=sender, fix=fix)
    return tensors


def training_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a resumed training needs of a network and its optimiser, by name."""
    import torch

    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


def load_training_state(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``training_state``."""
    network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
