"""What a site sends in a round: one safetensors file, checked against what the hub expects before it is used."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.checkpoints import save_tensors
from common.errors import InputError

MOMENTUM = "momentum/"  # prefix of the optimiser's tensors beside the network's
MAX_HEADER_BYTES = 100 * 2**20
WIDTH_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = "F32"
INTEGERS = ("I64",)


@dataclass(frozen=True)
class Layout:
    """Names, dtypes and shapes of an exchanged model, in the order in which the file holds them."""

    entries: tuple[tuple[str, str, tuple[int, ...]], ...]

    @property
    def n_bytes(self) -> int:
        """Size of the tensors."""
        return sum(WIDTH_BYTES[dtype] * math.prod(shape) for _, dtype, shape in self.entries)

    @property
    def n_integers(self) -> int:
        """64-bit integers; safetensors stores wider types first, so that they precede the floats."""
        return sum(math.prod(shape) for _, dtype, shape in self.entries if dtype in INTEGERS)

    @property
    def n_floats(self) -> int:
        """32-bit floats."""
        return sum(math.prod(shape) for _, dtype, shape in self.entries if dtype == FLOATS)


@dataclass(frozen=True)
class Update:
    """A file's numbers as two flat tensors, mapped and not read; ``metadata`` is its header's JSON."""

    path: Path
    layout: Layout
    floats: torch.Tensor
    integers: torch.Tensor
    metadata: Mapping[str, Any]


def write_update(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a site's tensors (float32 and int64) for the hub."""
    save_tensors(path, tensors, metadata)


def open_update(path: Path, expected: Layout | None = None) -> Update:
    """Map an update; no number is read yet.

    Args:
        expected: the hub's layout; another one is refused.

    Raises:
        InputError: truncated, too large a header, unknown dtypes, or names, dtypes or shapes that are not expected.
    """
    try:
        layout, metadata, start = _read_header(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise InputError(f"not a readable update ({error})", where=path, fix="send it again") from error
    if expected is not None and layout != expected:
        raise InputError(_difference(layout, expected), where=path, fix="train with the plan that was negotiated")
    with path.open("rb") as stream:
        block = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    floats_at = start + 8 * layout.n_integers
    return Update(
        path,
        layout,
        _flat(block, torch.float32, layout.n_floats, floats_at),
        _flat(block, torch.int64, layout.n_integers, start),
        metadata,
    )


def _flat(block: mmap.mmap, dtype: torch.dtype, count: int, offset: int) -> torch.Tensor:
    return torch.frombuffer(block, dtype=dtype, count=count, offset=offset) if count else torch.empty(0, dtype=dtype)


def _read_header(path: Path) -> tuple[Layout, dict[str, Any], int]:
    """Layout, metadata and where the tensors start."""
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
        if item["dtype"] not in (FLOATS, *INTEGERS):
            raise ValueError(f"tensor {name!r} is {item['dtype']}, not {FLOATS} or {INTEGERS[0]}")
        begin, end = item["data_offsets"][0], end + WIDTH_BYTES[item["dtype"]] * math.prod(item["shape"])
        if item["data_offsets"] != [begin, end]:
            raise ValueError(f"tensor {name!r} lies at {item['data_offsets']}")
    if 8 + n_header_bytes + end != n_file_bytes:
        raise ValueError(f"{n_file_bytes} bytes, not {8 + n_header_bytes + end}")
    return layout, metadata, 8 + n_header_bytes


def _difference(layout: Layout, expected: Layout) -> str:
    here, there = {e[0]: e for e in layout.entries}, {e[0]: e for e in expected.entries}
    for name in sorted(set(here) ^ set(there)):
        return f"tensor {name!r} is {'not expected' if name in here else 'missing'}"
    for name, (_, dtype, shape) in sorted(here.items()):
        if here[name] != there[name]:
            return f"tensor {name!r} is {dtype} {list(shape)}, not {there[name][1]} {list(there[name][2])}"
    return "its tensors stand in another order"
