"""One training on several processes: which images of a batch each one computes, and how their results are averaged.

``training.distributed`` starts and ends the processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


class ProcessLostError(RuntimeError):
    """Another process of the training does not answer any more."""


@dataclass(frozen=True)
class BatchShard:
    """What this process computes of every batch: each ``n_processes``-th image, from ``rank`` on.

    A minibatch-deviation group of n images has every (batch / n)-th of them, so strides keep groups whole.
    """

    rank: int = 0
    n_processes: int = 1
    group: torch.distributed.ProcessGroup | None = None  # the connection for ``barrier``

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

    def barrier(self, flag: bool = False) -> bool:
        """Wait for every process, however long it takes; True if any of them passed True.

        Raises:
            ProcessLostError: one of them ended.
        """
        if self.n_processes == 1:
            return flag
        any_flag = torch.tensor(int(flag))  # on the CPU: the cards do not wait
        with answered():
            torch.distributed.all_reduce(any_flag, torch.distributed.ReduceOp.MAX, group=self.group)
            return bool(any_flag)


@contextmanager
def answered() -> Iterator[None]:
    """ProcessLostError where the block gets no answer from another process."""
    try:
        yield
    except RuntimeError as error:  # gloo has no error of its own
        raise ProcessLostError(str(error)) from error


SINGLE_PROCESS = BatchShard()
