"""The machine a training runs on, as far as settings follow from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """What of a machine matters: its kind of device, the memory there, whether it computes in bfloat16."""

    kind: str  # "cpu" or "cuda"
    memory_gib: float
    has_bf16: bool


def describe_machine(device: str) -> Machine:
    """The machine this process runs on; memory rounded down to whole GiB, so that like machines choose alike."""
    import torch

    if torch.device(device).type == "cuda":
        total = torch.cuda.get_device_properties(torch.device(device)).total_memory
        return Machine("cuda", float(max(1, total // 2**30)), torch.cuda.is_bf16_supported())
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text(encoding="utf-8") if cpu_info.is_file() else ""
    return Machine("cpu", float(max(1, total // 2**30)), "avx512_bf16" in flags or "amx_bf16" in flags)


def found_device(name: str) -> str:
    """``auto`` is a GPU where there is one, and the CPU elsewhere; every other name is itself."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(name: str) -> torch.device:
    """The device ``name``.

    Raises:
        InputError: there is none here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = f"no such device here: {name!r} ({str(error).splitlines()[0]})"
        raise InputError(problem, where="--device", fix="use --device cpu") from error
    return device
