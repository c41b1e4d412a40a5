"""Tensors as bytes between hub and sites, checked before use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


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
