"""Which stages may start now: the rule every executor and the simulator share. It knows no clock."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from engine.graph import Graph, Resources, reached

Units = tuple[int, int]  # CPUs and GPUs in whole ten-thousandths, Ray's granularity: thirds of a GPU add up exactly
UNITS = 10_000
_HELD = -1  # in place of an index among the ready stages


def resource_units(resources: Resources) -> Units:
    """``(cpus, gpus)`` in ten-thousandths."""
    return round(resources.cpus * UNITS), round(resources.gpus * UNITS)


@dataclass(frozen=True)
class Schedule:
    """An order that an executor can follow without a clock.

    ``order`` names every stage to do, most urgent first, inputs before dependants. ``waits`` names the stage that must
    have started (or be blocked by a failure) before another may start, although that one's inputs are there: resources
    left idle on purpose, for a more urgent stage that is about to become ready.
    """

    order: tuple[str, ...]
    waits: Mapping[str, str] = field(default_factory=dict)


class Dispatcher:
    """Tells which stages may start, given those that started, finished or failed so far.

    Whatever the real durations and failures are, some stage can start whenever none is running and any is left: inputs
    and waits all point backwards in ``schedule.order``, so the first stage left has nothing to wait for.

    Args:
        capacity: of the whole cluster; placing stages on nodes is the executor's business.
        done: stages that need not run; what reads them may start.

    Raises:
        ValueError: the order misses a stage, contradicts inputs or waits, or a stage asks for more than ``capacity``.
    """

    def __init__(self, graph: Graph, schedule: Schedule, capacity: Resources, done: Collection[str]) -> None:
        self._order, self._graph = schedule.order, graph
        self._rank = {stage_id: rank for rank, stage_id in enumerate(schedule.order)}
        self._asked = {stage_id: resource_units(graph.stages[stage_id].resources) for stage_id in schedule.order}
        self._free = resource_units(capacity)
        self._open = set(graph.stages) - set(done)  # neither done, ended nor blocked
        self._running: set[str] = set()
        self._held_by: dict[str, list[str]] = {}  # stage -> stages whose waits name it
        self._n_missing = dict.fromkeys(schedule.order, 0)  # inputs and waits still to come
        self._ready: dict[Units, list[int]] = {}  # ranks, sorted, by what the stages ask for
        self._check(schedule)
        for stage_id in schedule.order:
            self._register(stage_id, schedule.waits.get(stage_id))

    def _check(self, schedule: Schedule) -> None:
        if self._open != set(schedule.order):
            raise ValueError(f"the order and the stages to do differ in {sorted(self._open ^ set(schedule.order))}")
        for stage_id, asked in self._asked.items():
            if asked[0] > self._free[0] or asked[1] > self._free[1]:
                raise ValueError(f"{stage_id} asks for more than there is: {self._graph.stages[stage_id].resources}")
            for earlier in self._awaited(stage_id, schedule.waits.get(stage_id)):
                if self._rank[earlier] >= self._rank[stage_id]:
                    raise ValueError(f"{stage_id} waits for {earlier}, which the order puts behind it")

    def _awaited(self, stage_id: str, wait: str | None) -> Iterator[str]:
        yield from self._open.intersection(self._graph.stages[stage_id].inputs.values())
        if wait in self._open:
            yield wait

    def _register(self, stage_id: str, wait: str | None) -> None:
        self._n_missing[stage_id] = sum(1 for _ in self._awaited(stage_id, wait))
        if wait in self._open:
            self._held_by.setdefault(wait, []).append(stage_id)
        if not self._n_missing[stage_id]:
            self._add_ready(stage_id)

    def next_stages(self) -> list[str]:
        """Ready stages that fit into what is free together, most urgent first. Changes nothing: see ``started``."""
        cpus, gpus = self._free
        heads = [(ranks[0], asked, 0) for asked, ranks in self._ready.items() if ranks]
        heapq.heapify(heads)
        chosen: list[str] = []
        while heads:
            rank, asked, index = heapq.heappop(heads)
            if asked[0] > cpus or asked[1] > gpus:
                continue  # nor does any other stage that asks for as much
            cpus, gpus = cpus - asked[0], gpus - asked[1]
            chosen.append(self._order[rank])
            if 0 <= index < len(self._ready[asked]) - 1:
                heapq.heappush(heads, (self._ready[asked][index + 1], asked, index + 1))
            for held in self._held_by.get(chosen[-1], ()):
                if self._n_missing[held] == 1:  # the start of this one is all it waits for
                    heapq.heappush(heads, (self._rank[held], self._asked[held], _HELD))
        return chosen

    def started(self, stage_id: str) -> None:
        """The stage took its resources.

        Raises:
            ValueError: it was not ready.
        """
        ranks = self._ready.get(self._asked[stage_id], [])
        index = bisect_left(ranks, self._rank[stage_id])
        if ranks[index : index + 1] != [self._rank[stage_id]]:
            raise ValueError(f"{stage_id} is not ready to start")
        del ranks[index]
        self._running.add(stage_id)
        self._give_back(stage_id, -1)
        self._release_waits(stage_id)

    def finished(self, stage_id: str) -> None:
        """The stage gave its resources back; what reads it may be ready now."""
        self._end(stage_id)
        for dependant in self._graph.dependants[stage_id]:
            self._arrived(dependant)

    def failed(self, stage_id: str) -> list[str]:
        """The stage ended without a result; returns the stages that can no longer run, sorted."""
        self._end(stage_id)
        blocked = reached(stage_id, lambda found: self._open.intersection(self._graph.dependants[found]))
        self._open -= blocked
        for gone in sorted(blocked):
            self._release_waits(gone)
        return sorted(blocked)

    def _end(self, stage_id: str) -> None:
        self._running.remove(stage_id)
        self._open.discard(stage_id)
        self._give_back(stage_id, 1)

    def _release_waits(self, stage_id: str) -> None:
        for held in self._held_by.pop(stage_id, ()):
            self._arrived(held)

    def _arrived(self, stage_id: str) -> None:
        if stage_id not in self._open:
            return
        self._n_missing[stage_id] -= 1
        if not self._n_missing[stage_id]:
            self._add_ready(stage_id)

    def _add_ready(self, stage_id: str) -> None:
        insort(self._ready.setdefault(self._asked[stage_id], []), self._rank[stage_id])

    def _give_back(self, stage_id: str, sign: int) -> None:
        cpus, gpus = self._asked[stage_id]
        self._free = (self._free[0] + sign * cpus, self._free[1] + sign * gpus)
