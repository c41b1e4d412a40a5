"""What a site sends in a round: one safetensors file, checked against what the hub expects before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from common.checkpoints import load_tensors
from common.errors import InputError

MOMENTUM = "momentum/"  # prefix of the optimiser's tensors beside the network's
DTYPES = ("float32", "int64")  # weights, and counters

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of every tensor of an exchanged model, by name."""


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """The layout of a model."""
    return {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors.items()}


def read_update(path: Path, expected: Layout | None = None) -> dict[str, torch.Tensor]:
    """The tensors of an update; their numbers are read from the file when they are used.

    Args:
        expected: the hub's layout; another one is refused.

    Raises:
        InputError: not a whole safetensors file, or dtypes, names or shapes that are not expected.
    """
    try:
        tensors, _ = load_tensors(path)
    except ValueError as error:
        reason = error.problem if isinstance(error, InputError) else error
        raise InputError(f"it is not a readable update ({reason})", where=path, fix="send it again") from error
    layout = layout_of(tensors)
    problems = [
        f"tensor {name!r} is {dtype}, not {' or '.join(DTYPES)}"
        for name, (dtype, _) in layout.items()
        if dtype not in DTYPES
    ]
    problems += [] if expected is None else _differences(layout, expected)
    if problems:
        raise InputError(problems[0], where=path, fix="train with the plan that was negotiated")
    return tensors


def read_into(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite ``tensors`` with those of the file, in place.

    Raises:
        InputError: the file does not hold exactly these tensors.
    """
    arrived = read_update(path, layout_of(tensors))
    for name, tensor in tensors.items():
        tensor.detach().copy_(arrived[name])


def _differences(layout: Layout, expected: Layout) -> Iterator[str]:
    for name in sorted(layout.keys() ^ expected.keys()):
        yield f"tensor {name!r} is {'not expected' if name in layout else 'missing'}"
    for name in sorted(layout.keys() & expected.keys()):
        (dtype, shape), (wanted_dtype, wanted_shape) = layout[name], expected[name]
        if layout[name] != expected[name]:
            yield f"tensor {name!r} is {dtype} {list(shape)}, not {wanted_dtype} {list(wanted_shape)}"
