"""The order in which stages run: the best of several deterministic plans, never slower than the barrier program.

Greedy list scheduling alone can lose to a barrier program, because a long stage that starts a moment too early holds
the resources a more urgent one is about to need. So several schedules are computed on the expected durations and the
shortest is taken: longest path first, the barrier programs themselves, both improved by pushing stages late and early
again, and seeded variations of them. The barrier programs are among the candidates, and no step lengthens a candidate:
that is why the result is never above them (on the expected durations).
"""

from __future__ import annotations

import logging
import random
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence

from common.seeds import derive_seed
from engine.graph import Graph, Resources
from engine.scheduling.dispatcher import Dispatcher, Schedule
from engine.scheduling.placement import (
    Problem,
    build_problem,
    justify,
    linear_extension,
    makespan,
    path_lengths,
    place,
    schedule_of,
)
from engine.scheduling.simulate import barrier_programs, barrier_starts, longest_path_first, simulate, tight_lower_bound

__all__ = ["Dispatcher", "Schedule", "plan_schedule"]

log = logging.getLogger(__name__)

PLACED_STAGES = 30_000  # effort of the search: stages placed in all variations together, not seconds
MAX_VARIATIONS = 200
WAIT_TRIALS = 16  # simulations spent on finding waits that are not needed
RELATIVE_TOLERANCE = 1e-9  # sums of durations in another order differ by this much at most
N_OTHER_DURATIONS, SPREAD = 6, 0.3  # runs that a schedule is judged by, with durations off by up to this share
MAX_PREMIUM = 1.02  # of the expected makespan over the shortest found, for standing wrong expectations better
EQUALLY_ROBUST = 1.01


def plan_schedule(graph: Graph, capacity: Resources, done: Collection[str] = ()) -> Schedule:
    """The order for what is left of ``graph``, from the stages' expected costs; the same on every machine.

    Raises:
        ValueError: a stage asks for more than ``capacity``.
    """
    problem = build_problem(graph, capacity, done)
    if not problem.names:
        return Schedule(())

    def expected(schedule: Schedule) -> float:
        return simulate(graph, schedule, capacity, done).makespan

    greedy = longest_path_first(graph, capacity, done)
    barriers = [barrier_starts(graph, steps, capacity, done) for steps in barrier_programs(graph)]
    first = [
        place(problem, linear_extension(problem, [starts[name] for name in problem.names]))
        for starts in (simulate(graph, greedy, capacity, done).starts, *barriers)
    ]
    exact = schedule_of(problem, _search(problem, first, tight_lower_bound(graph, capacity, done)))
    ends = [makespan(problem, [starts[name] for name in problem.names]) for starts in barriers]
    limit = min(expected(exact) * MAX_PREMIUM, *ends) * (1 + RELATIVE_TOLERANCE)
    simpler = (greedy, Schedule(exact.order), _without_needless_waits(exact, expected))
    candidates = [*(schedule for schedule in simpler if expected(schedule) <= limit), exact]
    # expectations are guesses and a schedule must not hang on them: of those that stand other durations as well as the
    # best, up to EQUALLY_ROBUST, the simplest is taken
    generator = random.Random(derive_seed("other durations"))
    costs = {stage_id: stage.cost for stage_id, stage in sorted(graph.stages.items())}
    others = [
        {stage_id: cost * generator.uniform(1 - SPREAD, 1 + SPREAD) for stage_id, cost in costs.items()}
        for _ in range(N_OTHER_DURATIONS)
    ]
    means = [
        statistics.fmean(simulate(graph, schedule, capacity, done, durations).makespan for durations in others)
        for schedule in candidates
    ]
    robust = [s for s, mean in zip(candidates, means, strict=True) if mean <= EQUALLY_ROBUST * min(means)]
    log.debug("%d stages: makespan %.4g, %d waits", len(problem.names), expected(robust[0]), len(robust[0].waits))
    return robust[0]


def _search(problem: Problem, candidates: Sequence[list[float]], bound: float) -> list[float]:
    """The shortest of the candidates and of seeded variations; stops where the lower bound is reached."""
    enough = bound * (1 + RELATIVE_TOLERANCE)
    best, shortest = [0.0], float("inf")
    for starts in _with_variations(problem, candidates):
        length = makespan(problem, starts)
        if length < shortest:
            best, shortest = starts, length
        if shortest <= enough:
            break
    return best


def _with_variations(problem: Problem, candidates: Sequence[list[float]]) -> Iterator[list[float]]:
    good: list[list[float]] = []
    for starts in candidates:
        yield starts
        good.append(justify(problem, starts))
        yield good[-1]
    generator = random.Random(derive_seed("schedule", len(problem.names)))
    for number in range(min(MAX_VARIATIONS, PLACED_STAGES // (3 * len(problem.names)))):
        good.sort(key=lambda starts: makespan(problem, starts))
        if number % 2:  # path lengths of noisy durations
            noisy = [duration * generator.uniform(0.5, 1.5) for duration in problem.durations]
            keys = [-length for length in path_lengths(problem, noisy)]
        else:  # the best starts, jittered
            width = makespan(problem, good[0]) * generator.choice((0.02, 0.1, 0.3))
            keys = [start + generator.uniform(-width, width) for start in good[0]]
        starts = justify(problem, place(problem, linear_extension(problem, keys)))
        yield starts
        if makespan(problem, starts) <= makespan(problem, good[0]):
            good = [starts]  # the newest of equals, so that the search moves on


def _without_needless_waits(schedule: Schedule, expected: Callable[[Schedule], float]) -> Schedule:
    """Drop waits that do not shorten the run: each one left is idling on purpose.

    All are dropped if that costs nothing, else halves of what is left, then quarters, while trials last.
    """
    longest = expected(schedule) * (1 + RELATIVE_TOLERANCE)
    chunks = [list(schedule.waits)]
    for _ in range(WAIT_TRIALS):
        if not chunks or not chunks[0]:
            break
        chunk = chunks.pop(0)
        without = Schedule(schedule.order, {k: v for k, v in schedule.waits.items() if k not in chunk})
        if expected(without) <= longest:
            schedule = without
        elif len(chunk) > 1:
            chunks += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
    return schedule
