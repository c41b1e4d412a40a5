"""One training on several processes: who computes which images of a batch, and how results come together.

``gan.together`` has the processes themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import InputError
from gan.settings import GanSettings


class ProcessLostError(RuntimeError):
    """Another process of the training does not answer any more."""


@dataclass(frozen=True)
class Share:
    """What this process computes of every batch: each ``n_processes``-th image, from ``rank`` on.

    A minibatch-deviation group of n images has every (batch / n)-th of them, so strides keep groups whole.
    """

    rank: int = 0
    n_processes: int = 1
    meeting: torch.distributed.ProcessGroup | None = None  # the connection for ``meet``

    def of(self, batch: Tensor, dim: int = 0) -> Tensor:
        """Its images of a whole batch."""
        if self.n_processes == 1:
            return batch
        index = torch.arange(self.rank, batch.shape[dim], self.n_processes, device=batch.device)
        return batch.index_select(dim, index)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message; ProcessLostError without an answer."""
        if self.n_processes == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with answered():
            torch.distributed.all_reduce(flat)
        flat /= self.n_processes
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over the processes."""
        value = value.clone()
        self.average([value])
        return value

    def meet(self, says: bool = False) -> bool:
        """Wait for every process, however long it takes: does one of them say so? ProcessLostError if one ended."""
        if self.n_processes == 1:
            return says
        said = torch.tensor(int(says))  # on the CPU: the cards do not wait
        with answered():
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, group=self.meeting)
            return bool(said)


@contextmanager
def answered() -> Iterator[None]:
    """ProcessLostError where the block gets no answer from another process."""
    try:
        yield
    except RuntimeError as error:  # gloo has no error of its own
        raise ProcessLostError(str(error)) from error


ALONE = Share()


def check_shares(settings: GanSettings, n_processes: int) -> None:
    """InputError unless every process gets as many images, and whole minibatch-deviation groups of them.

    Under differential privacy there is one process: how many images a step has is then known to none before.
    """
    if settings.config.privacy is not None and n_processes > 1:
        problem = f"{n_processes} processes cannot share the images of a step under differential privacy"
        raise InputError(problem, where="n_processes", fix="use 1, or generator.settings.privacy=null")
    refusal = _refusal(settings, n_processes)
    if refusal is not None:
        half = settings.config.batch_size // 2
        fix = f"use a number of processes that divides {half}, or a larger generator.settings.batch_size"
        raise InputError(refusal, where="n_processes", fix=fix)


def n_processes_for(settings: GanSettings, n_devices: int) -> int:
    """The largest number of processes up to ``n_devices`` that ``check_shares`` accepts; one always is."""
    if settings.config.privacy is not None:
        return 1
    return max((n for n in range(2, n_devices + 1) if _refusal(settings, n) is None), default=1)


def _refusal(settings: GanSettings, n_processes: int) -> str | None:
    """Why the batch cannot be shared by so many."""
    batch_size, group = settings.config.batch_size, settings.config.minibatch_std_group
    if n_processes == 1:
        return None
    if batch_size % n_processes or (batch_size // 2) % n_processes:
        return f"{batch_size} images, and half of them, do not divide by {n_processes}"
    share = batch_size // n_processes
    return f"{share} images a process are no whole groups of {group}" if share % min(group, batch_size) else None
