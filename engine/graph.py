"""The stage graph as plain data: what is done, from what, with which settings and resources."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Resources:
    """What a stage asks for, or a cluster has."""

    cpus: float = 1.0
    gpus: float = 0.0


def count_workers(members: Sequence[str], *, hub_works: bool) -> int:
    """Processes of a stage that compute: one a member, and the stage itself where it works too or is alone."""
    return len(members) + hub_works if members else 1


@dataclass(frozen=True)
class Stage:
    """One node of the graph: a function that reads the folders of its inputs and writes one folder."""

    name: str  # "generator"
    fold: int
    site: str  # "A", or "all" for stages across sites
    function: str  # "pipeline.stages.generator:train_generator"
    settings: Mapping[str, Any]  # JSON-able; everything that influences the result
    inputs: Mapping[str, str]  # role -> id of the stage that writes it
    part: str = ""  # tells stages of one name and site apart, for example the evaluated model
    seed: int = 0
    resources: Resources = Resources()
    members: tuple[str, ...] = ()  # sites that take part with a worker each, which share ``resources``
    hub_works: bool = False  # beside its members the stage computes itself, and has a worker's share
    private_to: str | None = None  # the site whose real data it reads; None: only what may cross borders
    code: tuple[str, ...] = ()  # packages and files of the repository its result depends on
    cost: float = 1.0  # expected relative duration, for the order and the time left only
    leaves_site: bool = False  # its folder is what leaves: a package, or an answer about one
    is_training: bool = False  # goes on from its own checkpoint when half written; stays when only code changed
    environment: Mapping[str, Any] = field(default_factory=dict)  # places on this machine; not part of the result

    @property
    def id(self) -> str:
        """``fold_0/generator/A``; also the stage's folder in the run."""
        return "/".join(filter(None, (f"fold_{self.fold}", self.name, self.site, self.part)))

    @property
    def n_workers(self) -> int:
        """Those who share its resources; without members, it alone."""
        return count_workers(self.members, hub_works=self.hub_works)

    @property
    def worker_resources(self) -> Resources:
        """What each of its workers asks for."""
        return Resources(self.resources.cpus / self.n_workers, self.resources.gpus / self.n_workers)

    @property
    def own_resources(self) -> Resources:
        """What the stage asks for itself, its members aside."""
        return self.worker_resources if self.hub_works or not self.members else Resources(0.0, 0.0)


@dataclass(frozen=True)
class Graph:
    """Stages by id. Edges are the stages' inputs.

    Raises:
        ValueError: an id that is not its stage's, an unknown input, or a cycle.
    """

    stages: Mapping[str, Stage]

    def __post_init__(self) -> None:
        for stage_id, stage in self.stages.items():
            if stage_id != stage.id:
                raise ValueError(f"stage {stage.id} stands under {stage_id}")
            for role, source in stage.inputs.items():
                if source not in self.stages:
                    raise ValueError(f"{stage_id} reads {role} from {source}, which is no stage")
        _ = self.order  # a cycle is found here

    @cached_property
    def dependants(self) -> dict[str, tuple[str, ...]]:
        """By stage: those that read its folder."""
        found: dict[str, list[str]] = {stage_id: [] for stage_id in self.stages}
        for stage_id, stage in self.stages.items():
            for source in sorted(set(stage.inputs.values())):
                found[source].append(stage_id)
        return {stage_id: tuple(sorted(dependants)) for stage_id, dependants in found.items()}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Inputs before dependants; by id where that leaves a choice."""
        waiting = {stage_id: len(set(stage.inputs.values())) for stage_id, stage in self.stages.items()}
        ready = sorted(stage_id for stage_id, n_inputs in waiting.items() if n_inputs == 0)
        order: list[str] = []
        while ready:
            order.append(heapq.heappop(ready))
            for dependant in self.dependants[order[-1]]:
                waiting[dependant] -= 1
                if waiting[dependant] == 0:
                    heapq.heappush(ready, dependant)
        if len(order) < len(self.stages):
            raise ValueError(f"these stages wait for each other: {sorted(set(self.stages) - set(order))}")
        return tuple(order)

    def only(self, stage_ids: Collection[str]) -> Graph:
        """Some of the stages; what they read of the others is left out of their inputs."""
        found = {}
        for stage_id, stage in self.stages.items():
            if stage_id in stage_ids:
                inputs = {role: source for role, source in stage.inputs.items() if source in stage_ids}
                found[stage_id] = replace(stage, inputs=inputs)
        return Graph(found)

    def ancestors(self, stage_id: str) -> frozenset[str]:
        """Stages that this one needs, directly or not."""
        return reached(stage_id, lambda found: self.stages[found].inputs.values())

    def descendants(self, stage_id: str) -> frozenset[str]:
        """Stages that need this one, directly or not."""
        return reached(stage_id, self.dependants.__getitem__)


def within(graph: Graph, capacity: Resources) -> Graph:
    """The graph with stages of several workers made to fit: the workers share CPUs and GPUs where there are too few."""
    return Graph({stage.id: _shared(stage, capacity) for stage in graph.stages.values()})


def _shared(stage: Stage, capacity: Resources) -> Stage:
    if not stage.members:
        return stage
    each, n_workers = stage.worker_resources, stage.n_workers
    cpus, gpus = _share(each.cpus, capacity.cpus, n_workers), _share(each.gpus, capacity.gpus, n_workers)
    return replace(stage, resources=Resources(cpus * n_workers, gpus * n_workers))


def _share(asked: float, there: float, n_workers: int) -> float:
    """What one worker gets, such that as many as needed fit on one device, evenly; all of it where nothing is there."""
    return asked / max(1, math.ceil(asked * n_workers / there)) if there else asked


def reached(start: str, neighbours: Callable[[str], Iterable[str]]) -> frozenset[str]:
    """All nodes that ``neighbours`` leads to from ``start``, in one step or more."""
    found: set[str] = set()
    open_ids = [start]
    while open_ids:
        new = set(neighbours(open_ids.pop())) - found
        found |= new
        open_ids += new
    return frozenset(found)
