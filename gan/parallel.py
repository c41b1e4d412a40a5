"""One training on several processes: who computes which images of a batch, and how results come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from gan.settings import GanSettings

JOIN_S = 30  # for the other processes to end after this one did


@dataclass(frozen=True)
class Share:
    """What this process computes of every batch: each ``n_processes``-th image, from ``rank`` on.

    A minibatch-deviation group of n images has every (batch / n)-th of them, so strides keep groups whole.
    """

    rank: int = 0
    n_processes: int = 1

    def of(self, batch: Tensor, dim: int = 0) -> Tensor:
        """Its images of a whole batch."""
        if self.n_processes == 1:
            return batch
        index = torch.arange(self.rank, batch.shape[dim], self.n_processes, device=batch.device)
        return batch.index_select(dim, index)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        if self.n_processes == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.n_processes
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over the processes."""
        value = value.clone()
        self.average([value])
        return value


ALONE = Share()


def check_shares(settings: GanSettings, n_processes: int) -> None:
    """InputError unless every process gets as many images, and whole minibatch-deviation groups of them."""
    batch_size, group = settings.config.batch_size, settings.config.minibatch_std_group
    fix = f"use a number of processes that divides {batch_size // 2}, or a larger generator.settings.batch_size"
    if batch_size % n_processes or (batch_size // 2) % n_processes:
        raise InputError(
            f"{batch_size} images, and half of them, do not divide by {n_processes}", where="n_processes", fix=fix
        )
    if (batch_size // n_processes) % min(group, batch_size):
        share = batch_size // n_processes
        raise InputError(f"{share} images a process are no whole groups of {group}", where="n_processes", fix=fix)


def run_together(n_processes: int, rendezvous: Path, device: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function(share, device, *arguments)`` in ``n_processes`` processes, of which this one is the first.

    Args:
        rendezvous: a path where nothing is, through which the processes find each other; no port is opened by name.
        device: ``cpu``, or ``cuda``: process i then has the i-th card.

    Returns:
        What the call in this process returns. One that fails in another process breaks the connection, so that this
        one fails too.
    """
    if n_processes == 1:
        return function(ALONE, device, *arguments)
    context = torch.multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_join, args=(rank, n_processes, rendezvous, device, function, arguments), daemon=True)
        for rank in range(1, n_processes)
    ]
    for process in others:
        process.start()
    try:
        return _join(0, n_processes, rendezvous, device, function, arguments)
    finally:
        for process in others:
            process.join(timeout=JOIN_S)
            process.kill()
        rendezvous.unlink(missing_ok=True)


def _join(
    rank: int, n_processes: int, rendezvous: Path, device: str, function: Callable[..., Any], arguments: Sequence[Any]
) -> Any:
    is_cuda = device.startswith("cuda")
    torch.distributed.init_process_group(
        "nccl" if is_cuda else "gloo", init_method=rendezvous.absolute().as_uri(), rank=rank, world_size=n_processes
    )
    try:
        if is_cuda:
            torch.cuda.set_device(rank)
        return function(Share(rank, n_processes), f"cuda:{rank}" if is_cuda else device, *arguments)
    finally:
        torch.distributed.destroy_process_group()
