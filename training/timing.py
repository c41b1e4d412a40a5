"""Seconds that work takes, the device's share included: what the benchmarks of several rooms measure with."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

K = TypeVar("K", bound=Hashable)
Work = Callable[[], object]


def seconds_of(work: Work, device: torch.device | str = "cpu") -> float:
    """Of one call; on a GPU, until the GPU has finished."""
    import torch

    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
    started_s = time.perf_counter()
    work()
    if is_cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


def interleaved_seconds(
    works: Mapping[K, Work], n_rounds: int, device: torch.device | str = "cpu"
) -> dict[K, list[float]]:
    """Seconds of every work in each round, in turns, so that a busy machine slows all of them alike.

    One more round comes first and is not counted: it warms up.
    """
    rounds = [{name: seconds_of(work, device) for name, work in works.items()} for _ in range(n_rounds + 1)]
    return {name: [seconds[name] for seconds in rounds[1:]] for name in works}
