"""Stages on a time axis: earliest starts for an order, forwards and backwards, and the schedule that replays them."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from engine.graph import Graph, Resources
from engine.scheduling.dispatcher import Schedule, Units, resource_units


@dataclass(frozen=True)
class Problem:
    """What is left to do of a graph, with stages as numbers in topological order; durations are the stages' costs."""

    names: tuple[str, ...]
    durations: tuple[float, ...]
    asked: tuple[Units, ...]
    inputs: tuple[tuple[int, ...], ...]
    dependants: tuple[tuple[int, ...], ...]
    capacity: Units

    @cached_property
    def reversed(self) -> Problem:
        """The same stages in reversed time: what is placed early in it ends late in this one."""
        return Problem(self.names, self.durations, self.asked, self.dependants, self.inputs, self.capacity)


def build_problem(graph: Graph, capacity: Resources, done: Collection[str]) -> Problem:
    """The stages of ``graph`` that are not ``done``, and the edges between them.

    Raises:
        ValueError: a stage asks for more than ``capacity``.
    """
    names = tuple(stage_id for stage_id in graph.order if stage_id not in set(done))
    numbers = {stage_id: number for number, stage_id in enumerate(names)}
    stages = [graph.stages[stage_id] for stage_id in names]
    asked = tuple(resource_units(stage.resources) for stage in stages)
    there = resource_units(capacity)
    for stage, (cpus, gpus) in zip(stages, asked, strict=True):
        if cpus > there[0] or gpus > there[1]:
            raise ValueError(f"{stage.id} asks for {stage.resources}, and there is {capacity}")
    inputs = tuple(tuple(sorted({numbers[s] for s in stage.inputs.values() if s in numbers})) for stage in stages)
    dependants = tuple(tuple(numbers[d] for d in graph.dependants[name] if d in numbers) for name in names)
    return Problem(names, tuple(stage.cost for stage in stages), asked, inputs, dependants, there)


def linear_extension(problem: Problem, keys: Sequence[float]) -> list[int]:
    """All stages, inputs before dependants, otherwise by ascending key and number."""
    n_missing = [len(inputs) for inputs in problem.inputs]
    ready = [(keys[number], number) for number, n_inputs in enumerate(n_missing) if n_inputs == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready)[1])
        for dependant in problem.dependants[order[-1]]:
            n_missing[dependant] -= 1
            if n_missing[dependant] == 0:
                heapq.heappush(ready, (keys[dependant], dependant))
    return order


def path_lengths(problem: Problem, durations: Sequence[float]) -> list[float]:
    """Longest path from each stage's start to the end of everything, in the units of ``durations``."""
    lengths = [0.0] * len(durations)
    for number in reversed(linear_extension(problem, [0.0] * len(durations))):
        lengths[number] = durations[number] + max((lengths[d] for d in problem.dependants[number]), default=0.0)
    return lengths


def place(problem: Problem, order: Sequence[int]) -> list[float]:
    """Start of each stage when each, in ``order``, takes the earliest gap that fits it (serial schedule generation).

    Kolisch, Eur. J. Oper. Res. 90 (1996) 320. ``order`` puts inputs before dependants.
    """
    starts = [0.0] * len(order)
    free = _FreeResources(problem.capacity)
    for number in order:
        ready = max((starts[i] + problem.durations[i] for i in problem.inputs[number]), default=0.0)
        starts[number] = free.take(ready, problem.durations[number], problem.asked[number])
    return starts


def makespan(problem: Problem, starts: Sequence[float]) -> float:
    """End of the last stage."""
    return max((start + duration for start, duration in zip(starts, problem.durations, strict=True)), default=0.0)


def justify(problem: Problem, starts: Sequence[float]) -> list[float]:
    """Push every stage as late as it can be, then as early: the makespan shrinks or stays.

    Double justification: Valls, Ballestin and Quintanilla, Eur. J. Oper. Res. 165 (2005) 375.
    """
    end = makespan(problem, starts)
    ends = [start + duration for start, duration in zip(starts, problem.durations, strict=True)]
    from_end = place(problem.reversed, linear_extension(problem.reversed, [-time for time in ends]))
    late = [end - start - duration for start, duration in zip(from_end, problem.durations, strict=True)]
    return place(problem, linear_extension(problem, late))


def schedule_of(problem: Problem, starts: Sequence[float]) -> Schedule:
    """The schedule that replays ``starts`` when durations are as expected.

    In a placement each stage starts when an input ends or when resources come free. In the second case it waits until
    the stage before it has started, so that it cannot start sooner in the way of a more urgent one. From then to its
    own start nothing else starts, and what runs leaves too little for it: so it starts when it should.
    """
    order = linear_extension(problem, starts)
    waits = {}
    for earlier, number in pairwise(order):
        ready = max((starts[i] + problem.durations[i] for i in problem.inputs[number]), default=0.0)
        if starts[number] > ready:
            waits[problem.names[number]] = problem.names[earlier]
    return Schedule(tuple(problem.names[number] for number in order), waits)


class _FreeResources:
    """What is free over time: from ``_times[i]`` to the next time, ``_cpus[i]`` and ``_gpus[i]``."""

    def __init__(self, capacity: Units) -> None:
        self._times, self._cpus, self._gpus = [0.0], [capacity[0]], [capacity[1]]

    def take(self, ready: float, duration: float, asked: Units) -> float:
        """Reserve the first gap of ``duration`` from ``ready`` on; returns its start."""
        start = self._first_gap(ready, duration, asked)
        for index in range(self._split(start), self._split(start + duration)):
            self._cpus[index] -= asked[0]
            self._gpus[index] -= asked[1]
        return start

    def _first_gap(self, ready: float, duration: float, asked: Units) -> float:
        start, index = ready, bisect_right(self._times, ready) - 1
        n_times = len(self._times)
        while True:
            fits = asked[0] <= self._cpus[index] and asked[1] <= self._gpus[index]
            if index + 1 == n_times:
                return start  # everything is free after the last time
            if not fits:
                start = self._times[index + 1]
            elif self._times[index + 1] >= start + duration:
                return start
            index += 1

    def _split(self, time: float) -> int:
        index = bisect_left(self._times, time)
        if index == len(self._times) or self._times[index] != time:
            self._times.insert(index, time)
            self._cpus.insert(index, self._cpus[index - 1])
            self._gpus.insert(index, self._gpus[index - 1])
        return index
