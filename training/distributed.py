"""The processes of one training: the leader, which is the calling process, and its followers, which it starts.

Two connections: one for the sums of a step, in which no process waits long for another, and one over which followers
wait for the leader for as long as it scores samples and writes. A process that ends breaks both.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from torch import distributed

from training.batch_shard import SINGLE_PROCESS, BatchShard, ProcessLostError, answered

T = TypeVar("T")
Follow = Callable[..., None]

log = logging.getLogger(__name__)

STEP_TIMEOUT = timedelta(minutes=10)  # for the others to join, or to come to the same sum
BARRIER_TIMEOUT = timedelta(days=7)  # to score samples may take long; a process that died is noticed without it
END_S = 30  # for a process to end once its work is over
JOINING = "joining"  # a follower's first report; the last is DONE, or why it failed
DONE = "done"
RENDEZVOUS = "rendezvous"  # of the processes, while there are several


def run_distributed(
    n_processes: int,
    out: Path,
    device: str,
    lead: Callable[[BatchShard, str], T],
    follow: Follow,
    *arguments: Any,
) -> T:
    """Call ``lead(shard, device)`` here and ``follow(shard, device, *arguments)`` in ``n_processes - 1`` processes.

    Args:
        out: the training's folder, in which the processes find each other through a file that is removed in the end.
        device: ``cpu``, or ``cuda``: process i then has the i-th card.
        follow: a function of a module, called with arguments that can be pickled.

    Returns:
        What ``lead`` returns. If it raises, the followers are ended.

    Raises:
        RuntimeError: a follower failed or was killed; the message says which and why.
    """
    if n_processes == 1:
        return lead(SINGLE_PROCESS, device)
    out.mkdir(parents=True, exist_ok=True)
    # a name of its own: what followers of a killed training still do to theirs must not be done to this one
    rendezvous = out / f".{uuid4().hex}.{RENDEZVOUS}"
    followers = _Followers(n_processes)
    try:
        followers.start(rendezvous, device, follow, arguments)
        own_device = _take_device(0, device)
        with _connected(0, n_processes, rendezvous, device) as shard:
            result = lead(shard, own_device)
            shard.barrier()
        followers.join()
        return result
    except ProcessLostError as error:
        raise RuntimeError(followers.why_lost() or str(error)) from error
    finally:
        followers.end()
        rendezvous.unlink(missing_ok=True)


class _Followers:
    """The leader's side: it starts the followers, learns how each one ends, and lets none run on."""

    def __init__(self, n_processes: int) -> None:
        self.n_processes = n_processes
        self._processes: dict[connection.Connection, multiprocessing.process.BaseProcess] = {}  # by what it reports to
        self._lost: str | None = None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._is_over = threading.Event()

    def start(self, rendezvous: Path, device: str, follow: Follow, arguments: Sequence[Any]) -> None:
        """Start them, and return when all are about to join; the leader would wait for ever for one that failed before.

        Raises:
            ProcessLostError: one ended before.
        """
        context = multiprocessing.get_context("spawn")  # CUDA cannot be used after a fork
        for rank in range(1, self.n_processes):
            reader, writer = context.Pipe(duplex=False)
            endpoint = (rank, self.n_processes, rendezvous, device, torch.get_num_threads())
            process = context.Process(
                target=_follow, args=(writer, endpoint, follow, arguments), name=f"process {rank}", daemon=True
            )
            process.start()
            writer.close()  # the follower's is then the only one, and its end closes it
            self._processes[reader] = process
        for reader in self._processes:
            if (report := self._hear(reader)) != JOINING:
                self._lost = report
                raise ProcessLostError(report)
        self._watcher.start()

    def why_lost(self) -> str | None:
        """Which of them failed and why, where one did."""
        if self._watcher.is_alive():
            self._watcher.join(END_S)
        return self._lost

    def join(self) -> None:
        """Let them close their side, after all of them met for the last time."""
        for process in self._processes.values():
            process.join(END_S)

    def end(self) -> None:
        """Kill those that still run: whatever ended the leader, there is no work for them."""
        self._is_over.set()
        for process in self._processes.values():
            process.kill()
            process.join()

    def _watch(self) -> None:
        """Break the connection when a follower fails: the cards would otherwise wait for each other for ever."""
        running = list(self._processes)
        while running:
            for reader in connection.wait(running):
                assert isinstance(reader, connection.Connection)
                running.remove(reader)
                if (report := self._hear(reader)) != DONE and not self._is_over.is_set():
                    self._lost = report
                    log.error(report)
                    group = distributed.group.WORLD
                    if group is not None:
                        group.abort()
                    return

    def _hear(self, reader: connection.Connection) -> str:
        process = self._processes[reader]
        try:
            report = str(reader.recv())
        except EOFError:
            process.join(END_S)
            report = f"ended with exit code {process.exitcode}"
        if report in (JOINING, DONE):
            return report
        return f"{process.name} of a training of {self.n_processes} failed: {report}"


Endpoint = tuple[int, int, Path, str, int]  # rank, number of processes, rendezvous, device, threads


def _follow(reports: connection.Connection, endpoint: Endpoint, follow: Follow, arguments: Sequence[Any]) -> None:
    """What a follower runs. It ends without Python's clean-up, which could write to the rendezvous again."""
    rank, n_processes, rendezvous, device, n_threads = endpoint
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    torch.set_num_threads(n_threads)
    try:
        own_device = _take_device(rank, device)
        reports.send(JOINING)
        with _connected(rank, n_processes, rendezvous, device) as shard:
            follow(shard, own_device, *arguments)
            shard.barrier()
    except ProcessLostError:
        pass  # another process knows why
    except Exception as error:
        traceback.print_exc()
        reports.send(f"{type(error).__name__}: {error}")
        os._exit(1)
    reports.send(DONE)
    os._exit(0)


def _end_with_the_leader() -> None:
    """End when the leader has ended: a killed leader sends no message, and a card would wait longer than a socket."""
    leader = multiprocessing.parent_process()
    assert leader is not None
    leader.join()
    os._exit(1)


def _take_device(rank: int, device: str) -> str:
    """This process's own: the ``rank``-th card, or the CPU."""
    if not device.startswith("cuda"):
        return device
    torch.cuda.set_device(rank)
    return f"cuda:{rank}"


@contextmanager
def _connected(rank: int, n_processes: int, rendezvous: Path, device: str) -> Iterator[BatchShard]:
    with answered():
        distributed.init_process_group(
            "nccl" if device.startswith("cuda") else "gloo",
            init_method=rendezvous.absolute().as_uri(),
            rank=rank,
            world_size=n_processes,
            timeout=STEP_TIMEOUT,
        )
    try:
        with answered():
            group = distributed.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
        assert isinstance(group, distributed.ProcessGroup)  # every process is in it
        yield BatchShard(rank, n_processes, group)
    finally:
        distributed.destroy_process_group()
