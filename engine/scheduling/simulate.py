"""What a schedule would take: an event simulator over the Dispatcher, barrier programs beside it, and lower bounds."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from engine.graph import Graph, Resources, reached
from engine.scheduling.dispatcher import Dispatcher, Schedule
from engine.scheduling.placement import Problem, build_problem, linear_extension, path_lengths

Names = tuple[str, ...]
Steps = tuple[frozenset[str], ...]  # stage names that run together; each step waits for the whole one before it


@dataclass(frozen=True)
class Simulation:
    """Starts and ends of stages, in the units of the durations; ``blocked`` stages never started."""

    starts: Mapping[str, float]
    ends: Mapping[str, float]
    failed: tuple[str, ...]
    blocked: tuple[str, ...]

    @property
    def makespan(self) -> float:
        """End of the last stage."""
        return max(self.ends.values(), default=0.0)


def simulate(
    graph: Graph,
    schedule: Schedule,
    capacity: Resources,
    done: Collection[str] = (),
    durations: Mapping[str, float] | None = None,
    failing: Collection[str] = (),
) -> Simulation:
    """Run the Dispatcher against a clock.

    Args:
        durations: real durations by stage; missing ones are the stages' costs.
        failing: stages that fail at their end.
    """
    dispatcher = Dispatcher(graph, schedule, capacity, done)
    durations = durations or {}
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    failed: list[str] = []
    blocked: set[str] = set()
    running: list[tuple[float, str]] = []
    now = 0.0
    while True:
        for stage_id in dispatcher.next_stages():
            dispatcher.started(stage_id)
            starts[stage_id] = now
            heapq.heappush(running, (now + durations.get(stage_id, graph.stages[stage_id].cost), stage_id))
        if not running:
            return Simulation(starts, ends, tuple(failed), tuple(sorted(blocked)))
        now = running[0][0]
        while running and running[0][0] == now:  # all that end at once, before anything new starts
            stage_id = heapq.heappop(running)[1]
            ends[stage_id] = now
            if stage_id in failing:
                failed.append(stage_id)
                blocked |= set(dispatcher.failed(stage_id))
            else:
                dispatcher.finished(stage_id)


def longest_path_first(graph: Graph, capacity: Resources, done: Collection[str] = ()) -> Schedule:
    """The greedy schedule: of what is ready, first that with the longest path to the end."""
    problem = build_problem(graph, capacity, done)
    order = linear_extension(problem, [-length for length in path_lengths(problem, problem.durations)])
    return Schedule(tuple(problem.names[number] for number in order))


def barrier_programs(graph: Graph) -> tuple[Steps, ...]:
    """Ways to run a graph stage name by stage name, as the original does: as early as can be, as late, and overlapped.

    In the overlapped one a name that leaves a choice of steps joins the step with the longest stage, as the original
    trains its real-data networks beside the generators.
    """
    # names that need each other's stages both ways share a step: they are one group
    needs: dict[str, set[str]] = {stage.name: set() for stage in graph.stages.values()}
    longest = dict.fromkeys(needs, 0.0)  # cost of the longest stage of a name
    for stage in graph.stages.values():
        needs[stage.name] |= {graph.stages[source].name for source in stage.inputs.values()}
        longest[stage.name] = max(longest[stage.name], stage.cost)
    needed = {name: reached(name, needs.__getitem__) for name in needs}
    group_of = {
        name: tuple(sorted({name} | {other for other in needed[name] if name in needed[other]})) for name in needs
    }
    inputs: dict[Names, set[Names]] = {group: set() for group in group_of.values()}
    for name, sources in needs.items():
        inputs[group_of[name]] |= {group_of[source] for source in sources} - {group_of[name]}
    # the earliest and the latest step of each group; a step whose time is fixed weighs as much as its longest stage
    earliest = _depths(inputs)
    heights = _depths({group: {other for other in inputs if group in inputs[other]} for group in inputs})
    latest = {group: max(heights.values()) - height for group, height in heights.items()}
    weight: dict[int, float] = {}
    for group in inputs:
        if earliest[group] == latest[group]:
            longest_of_group = max(longest[name] for name in group)
            weight[earliest[group]] = max(weight.get(earliest[group], 0.0), longest_of_group)
    choices: tuple[Callable[[range], int], ...] = (min, max, lambda steps: max(steps, key=lambda s: (weight[s], -s)))
    programs = []
    for choose in choices:
        step_of: dict[Names, int] = {}
        for group in sorted(inputs, key=lambda group: (earliest[group], group)):
            first = max((step_of[source] + 1 for source in inputs[group]), default=0)
            step_of[group] = choose(range(first, latest[group] + 1))
        steps = sorted(set(step_of.values()))
        programs.append(tuple(frozenset(n for group in inputs if step_of[group] == s for n in group) for s in steps))
    return tuple(dict.fromkeys(programs))


def _depths(inputs: Mapping[Names, set[Names]]) -> dict[Names, int]:
    """Edges on the longest way to each node."""
    depths: dict[Names, int] = {}
    left = sorted(inputs)
    while left:
        for node in [node for node in left if inputs[node] <= depths.keys()]:
            depths[node] = max((depths[source] + 1 for source in inputs[node]), default=0)
        left = [node for node in left if node not in depths]
    return depths


def barrier_starts(graph: Graph, steps: Steps, capacity: Resources, done: Collection[str] = ()) -> dict[str, float]:
    """Starts of the stages that are not ``done`` when each step runs alone, in it the longest path first."""
    starts: dict[str, float] = {}
    now = 0.0
    for names in steps:
        step = graph.only({i for i, stage in graph.stages.items() if stage.name in names and i not in done})
        run = simulate(step, longest_path_first(step, capacity), capacity)
        starts |= {stage_id: now + start for stage_id, start in run.starts.items()}
        now += run.makespan
    return starts


def barrier_makespan(graph: Graph, capacity: Resources) -> float:
    """Duration of the best of the barrier programs."""
    programs = (barrier_starts(graph, steps, capacity) for steps in barrier_programs(graph))
    return min(max((at + graph.stages[i].cost for i, at in starts.items()), default=0.0) for starts in programs)


def lower_bound(graph: Graph, capacity: Resources, done: Collection[str] = ()) -> float:
    """No schedule is shorter than the longest path, nor than all work shared evenly."""
    problem = build_problem(graph, capacity, done)
    longest = max(path_lengths(problem, problem.durations), default=0.0)
    return max(longest, _even_share(problem, range(len(problem.names))))


def tight_lower_bound(graph: Graph, capacity: Resources, done: Collection[str] = ()) -> float:
    """As ``lower_bound``, but through each stage: all it needs before it and all that needs it after it."""
    problem = build_problem(graph, capacity, done)
    numbers = {name: number for number, name in enumerate(problem.names)}
    after = path_lengths(problem, problem.durations)
    before = path_lengths(problem.reversed, problem.durations)
    bound = lower_bound(graph, capacity, done)
    for name, number in numbers.items():
        head = _even_share(problem, [numbers[i] for i in graph.ancestors(name) if i in numbers])
        tail = _even_share(problem, [numbers[i] for i in graph.descendants(name) if i in numbers])
        own = problem.durations[number]
        bound = max(bound, max(head + own, before[number]) - own + max(tail + own, after[number]))
    return bound


def _even_share(problem: Problem, numbers: Collection[int]) -> float:
    """Time that the work of some stages takes when it is spread over all CPUs and all GPUs without a gap."""
    work = (sum(problem.durations[n] * problem.asked[n][kind] for n in numbers) for kind in (0, 1))
    return max((units / there for units, there in zip(work, problem.capacity, strict=True) if there), default=0.0)
