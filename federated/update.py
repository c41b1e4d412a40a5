"""What a site sends in a round: one safetensors file, checked against what the hub expects before it is used."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import atomic_path

MOMENTUM = "momentum/"  # prefix of the optimiser's tensors beside the network's
MAX_HEADER_BYTES = 100 * 2**20
FLOATS, INTEGERS = "F32", "I64"
WIDTH_BYTES = {FLOATS: 4, INTEGERS: 8}


@dataclass(frozen=True)
class Layout:
    """Names, dtypes and shapes of an exchanged model, in the order in which the file holds them."""

    entries: tuple[tuple[str, str, tuple[int, ...]], ...]

    def named(self, integers: torch.Tensor, floats: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors by name, as views of the flat ``integers`` and ``floats``."""
        views, n_seen = {}, {INTEGERS: 0, FLOATS: 0}
        for name, dtype, shape in self.entries:
            flat = integers if dtype == INTEGERS else floats
            views[name] = flat[n_seen[dtype] : n_seen[dtype] + math.prod(shape)].view(shape)
            n_seen[dtype] += math.prod(shape)
        return views

    @property
    def n_bytes(self) -> int:
        """Size of the tensors."""
        return sum(WIDTH_BYTES[dtype] * math.prod(shape) for _, dtype, shape in self.entries)

    @property
    def n_integers(self) -> int:
        """Number of 64-bit integers."""
        return sum(math.prod(shape) for _, dtype, shape in self.entries if dtype == INTEGERS)

    @property
    def n_floats(self) -> int:
        """Number of 32-bit floats."""
        return sum(math.prod(shape) for _, dtype, shape in self.entries if dtype == FLOATS)


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """The layout in which ``write_update`` writes: integers, then floats, each by name."""
    entries = [(name, _dtype_name(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()]
    return Layout(tuple(sorted(entries, key=lambda entry: (entry[1] == FLOATS, entry[0]))))


@dataclass(frozen=True)
class Update:
    """A file whose header is known; its numbers are read when they are needed."""

    path: Path
    layout: Layout
    metadata: Mapping[str, Any]
    n_header_bytes: int

    @property
    def floats_at(self) -> int:
        """Where the floats begin; the integers lie before them."""
        return self.n_header_bytes + 8 * self.layout.n_integers


def write_update(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write float32 and int64 tensors as one safetensors file, whole or not at all, without copying them first.

    Raises:
        TypeError: another dtype.
    """
    with atomic_path(path) as temporary:
        overwrite_update(temporary, tensors, metadata)


def overwrite_update(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """As ``write_update``, over a file that is there: several times faster, and half written if it is cut off.

    For files that nobody reads before their writer has answered.
    """
    layout = layout_of(tensors)
    header = _header_of(layout, metadata)
    with path.open("r+b" if path.is_file() else "wb", buffering=0) as stream:
        stream.write(header)
        for name, _, _ in layout.entries:
            left = _bytes_of(tensors[name].detach().cpu().contiguous())
            while len(left):
                left = left[stream.write(left) or 0 :]
        stream.truncate()


def _header_of(layout: Layout, metadata: Mapping[str, Any]) -> bytes:
    """What stands before the numbers; it has the same length in every round."""
    header: dict[str, Any] = {"__metadata__": {"json": json.dumps(metadata, sort_keys=True)}}
    end = 0
    for name, dtype, shape in layout.entries:
        begin, end = end, end + WIDTH_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return struct.pack("<Q", len(text)) + text


def read_numbers(stream: RawIOBase, tensor: torch.Tensor) -> None:
    """Fill a contiguous tensor on the CPU from an unbuffered file.

    Raises:
        InputError: the file ends too early.
    """
    left = _bytes_of(tensor)
    while len(left):
        n_read = stream.readinto(left)
        if not n_read:
            raise InputError("the file ends too early", where=str(getattr(stream, "name", "")), fix="send it again")
        left = left[n_read:]


def read_into(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite ``tensors`` with those of the file, in place.

    Raises:
        InputError: the file does not hold exactly these tensors.
    """
    update = open_update(path, layout_of(tensors))
    with torch.no_grad(), path.open("rb", buffering=0) as stream:
        stream.seek(update.n_header_bytes)
        for name, _, _ in update.layout.entries:
            target = tensors[name].detach()
            if target.is_cpu and target.is_contiguous():
                read_numbers(stream, target)
            else:
                arrived = torch.empty(target.shape, dtype=target.dtype)
                read_numbers(stream, arrived)
                target.copy_(arrived)


def open_update(path: Path, expected: Layout | None = None) -> Update:
    """Read and check an update's header.

    Args:
        expected: the hub's layout; another one is refused.

    Raises:
        InputError: truncated, too large a header, unknown dtypes, or names, dtypes or shapes that are not expected.
    """
    try:
        update = _read_header(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"it is not a readable update ({error})", where=path, fix="send it again") from error
    if expected is not None and update.layout != expected:
        raise InputError(
            _difference(update.layout, expected), where=path, fix="train with the plan that was negotiated"
        )
    return update


def _dtype_name(tensor: torch.Tensor) -> str:
    names = {torch.float32: FLOATS, torch.int64: INTEGERS}
    if tensor.dtype not in names:
        raise TypeError(f"{tensor.dtype} is not exchanged")
    return names[tensor.dtype]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _read_header(path: Path) -> Update:
    n_file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        (n_header_bytes,) = struct.unpack("<Q", stream.read(8))
        if n_header_bytes > min(MAX_HEADER_BYTES, n_file_bytes):
            raise ValueError(f"a header of {n_header_bytes} bytes")
        header = json.loads(stream.read(n_header_bytes))
    metadata = json.loads(header.pop("__metadata__", {}).get("json", "{}"))
    found = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    layout = Layout(tuple((name, item["dtype"], tuple(item["shape"])) for name, item in found))
    end = 0
    for name, item in found:
        if item["dtype"] not in (FLOATS, INTEGERS):
            raise ValueError(f"tensor {name!r} is {item['dtype']}, not {FLOATS} or {INTEGERS}")
        begin, end = item["data_offsets"][0], end + WIDTH_BYTES[item["dtype"]] * math.prod(item["shape"])
        if item["data_offsets"] != [begin, end]:
            raise ValueError(f"tensor {name!r} lies at {item['data_offsets']}")
    if 8 + n_header_bytes + end != n_file_bytes:
        raise ValueError(f"{n_file_bytes} bytes, not {8 + n_header_bytes + end}")
    return Update(path, layout, metadata, 8 + n_header_bytes)


def _difference(layout: Layout, expected: Layout) -> str:
    here, there = {e[0]: e for e in layout.entries}, {e[0]: e for e in expected.entries}
    for name in sorted(set(here) ^ set(there)):
        return f"tensor {name!r} is {'not expected' if name in here else 'missing'}"
    for name, (_, dtype, shape) in sorted(here.items()):
        if here[name] != there[name]:
            return f"tensor {name!r} is {dtype} {list(shape)}, not {there[name][1]} {list(there[name][2])}"
    return "its tensors stand in another order"
