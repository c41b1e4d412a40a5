"""(interim) longest path first."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.graph import Graph, Resources


def plan_schedule(graph: Graph, capacity: Resources, done: Collection[str]) -> dict[str, float]:
    """Length of the longest path from each stage to the end."""
    length: dict[str, float] = {}
    for stage_id in reversed(graph.topological_order()):
        below = max((length[d] for d in graph.dependants(stage_id)), default=0.0)
        length[stage_id] = below + graph.stages[stage_id].cost
    return length


class Dispatcher:
    """Which stages may start now."""

    def __init__(self, graph: Graph, schedule: dict[str, float], capacity: Resources, done: Collection[str]) -> None:
        self.graph, self.schedule = graph, schedule
        self.free = [capacity.cpus, capacity.gpus]
        self.ended = set(done)
        self.running: set[str] = set()
        self.gone: set[str] = set()

    def next_stages(self) -> list[str]:
        """Ready stages that fit, most urgent first."""
        free = list(self.free)
        chosen = []
        for stage_id in sorted(self.graph.stages, key=lambda s: (-self.schedule[s], s)):
            stage = self.graph.stages[stage_id]
            if stage_id in self.ended | self.running | self.gone:
                continue
            fits = stage.resources.cpus <= free[0] and stage.resources.gpus <= free[1]
            if fits and set(stage.inputs.values()) <= self.ended:
                free[0] -= stage.resources.cpus
                free[1] -= stage.resources.gpus
                chosen.append(stage_id)
        return chosen

    def started(self, stage_id: str) -> None:
        """Took its resources."""
        self.running.add(stage_id)
        self._give(stage_id, -1)

    def finished(self, stage_id: str) -> None:
        """Gave them back."""
        self.running.discard(stage_id)
        self.ended.add(stage_id)
        self._give(stage_id, 1)

    def failed(self, stage_id: str) -> list[str]:
        """Its descendants are blocked."""
        self.running.discard(stage_id)
        self._give(stage_id, 1)
        blocked = set(self.graph.descendants(stage_id)) - self.ended
        self.gone |= blocked | {stage_id}
        return sorted(blocked)

    def _give(self, stage_id: str, sign: int) -> None:
        resources = self.graph.stages[stage_id].resources
        self.free[0] += sign * resources.cpus
        self.free[1] += sign * resources.gpus
