"""Figures of the scheduler on simulated clusters: ``python -m engine.scheduling.benchmark``.

The makespan over its lower bound, beside the barrier program's, for 2 to 8 sites on 1 to 8 GPUs; then what planning and
dispatching cost, on a graph of five folds and per empty stage through the real executors. Exits with 1 if any case is
above the barrier program.
"""

from __future__ import annotations

import logging
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from common.seeds import derive_seed
from engine.cluster import ClusterConfig
from engine.executors import Executor, build_executor
from engine.graph import Graph, Resources, Stage
from engine.run import run_graph
from engine.run_plan import plan_run
from engine.run_stage import StageContext
from engine.scheduling.scheduler import RELATIVE_TOLERANCE, Dispatcher, plan_schedule
from engine.scheduling.simulate import barrier_makespan, longest_path_first, lower_bound, simulate, tight_lower_bound
from engine.store import Store

ALL = "all"
SITES, GPUS, SKEWS = (2, 4, 8), (1, 2, 4, 8), (1.0, 3.0)
CPUS_PER_GPU = 8
GOAL = 1.10  # of the makespan over the lower bound, where there are at least two sites per GPU
N_PERTURBED, SPREAD = 5, 0.3  # runs whose real durations are off by up to this share

TRAIN, EMBED, LIGHT = Resources(4, 1), Resources(2, 0.5), Resources(2, 0)  # as config/cluster/gpu.yaml
HOURS = {"generator": 6.0, "segment_real": 6.0, "segment_syn": 6.0, "finetune": 6.0}
HOURS |= {"sample": 0.5, "calibrate": 0.2, "filter": 0.2, "label": 0.2, "check": 0.2, "evaluate": 0.1}
HOURS_LIGHT = 0.05
GROWS = {"generator", "sample", "calibrate", "filter", "label"}  # with the number of images of the site
RESOURCES = dict.fromkeys(("generator", "segment_real", "segment_syn", "finetune"), TRAIN)
RESOURCES |= dict.fromkeys(("sample", "calibrate", "filter", "label", "check", "evaluate"), EMBED)

SITE_INPUTS = {  # of the stages each site has; a pair is a stage of another site
    "prepare": (),
    "plan": ("prepare",),
    "segment_real": ("plan",),
    "slices": ("prepare", "plan"),
    "calibrate": ("slices",),
    "generator": ("slices", "plan"),
    "sample": ("generator", "slices"),
    "filter": ("sample", "slices", "calibrate", "generator"),
    "audit": ("slices", "calibrate", "filter"),
    "label": ("filter", "segment_real"),
    "share": ("filter", "audit", "label", "plan", "prepare", "generator"),
    "finetune": ("prepare", ("segment_syn", ALL)),
}


@dataclass(frozen=True)
class Case:
    """One simulated cluster and its makespans, in hours."""

    n_sites: int
    n_gpus: int
    skew: float
    bound: float
    tight_bound: float
    barriers: float
    greedy: float
    planned: float
    perturbed: float  # median over runs with other durations than planned for, of planned over greedy
    n_waits: int


def site_sizes(n_sites: int, skew: float) -> list[float]:
    """Relative sizes with mean 1, evenly spread; the largest is ``skew`` times the smallest."""
    smallest = 2 / (1 + skew)
    return [smallest * (1 + (skew - 1) * i / max(n_sites - 1, 1)) for i in range(n_sites)]


def simulated_experiment(n_sites: int, skew: float, folds: tuple[int, ...] = (0,)) -> Graph:
    """The stage graph of the main experiment, with hours as costs and a report stage at the end of each fold."""
    stages = [stage for fold in folds for stage in _fold(fold, site_sizes(n_sites, skew))]
    return Graph({stage.id: stage for stage in stages})


def _fold(fold: int, sizes: list[float]) -> Iterator[Stage]:
    sites = string.ascii_uppercase[: len(sizes)]
    for site, size in zip(sites, sizes, strict=True):
        for name, inputs in SITE_INPUTS.items():
            sources = [_id(fold, role, site) if isinstance(role, str) else _id(fold, *role) for role in inputs]
            yield _stage(name, fold, site, sources, size)
    yield _stage("prepare", fold, ALL, [_id(fold, "prepare", site) for site in sites])
    yield _stage("plan", fold, ALL, [_id(fold, "prepare", ALL)])
    yield _stage("segment_real", fold, ALL, [_id(fold, "plan", ALL)])
    checks = list(_checks(fold, sites))
    yield from checks
    yield _stage("merge", fold, ALL, [*(_id(fold, "share", site) for site in sites), *(stage.id for stage in checks)])
    yield _stage("segment_syn", fold, ALL, [_id(fold, "merge", ALL)])
    evaluated = list(_evaluated(fold, sites))
    yield from evaluated
    yield _stage("report", fold, ALL, [stage.id for stage in evaluated])


def _checks(fold: int, sites: str) -> Iterator[Stage]:
    for site, other in permutations(sites, 2):
        inputs = [_id(fold, "share", other), *(_id(fold, name, site) for name in ("calibrate", "slices", "plan"))]
        yield _stage("check", fold, site, inputs, part=other)


def _evaluated(fold: int, sites: str) -> Iterator[Stage]:
    models = [("segment_real", site) for site in (*sites, ALL)] + [("segment_syn", ALL)]
    models += [("finetune", site) for site in sites]
    for name, trained_on in models:
        for site in sites:
            inputs = [_id(fold, "prepare", site), _id(fold, name, trained_on)]
            yield _stage("evaluate", fold, site, inputs, part=f"{name}-{trained_on}")


def _stage(name: str, fold: int, site: str, inputs: list[str], size: float = 1.0, part: str = "") -> Stage:
    return Stage(
        name=name,
        fold=fold,
        site=site,
        part=part,
        function="",
        settings={},
        inputs={source: source for source in inputs},
        resources=RESOURCES.get(name, LIGHT),
        cost=HOURS.get(name, HOURS_LIGHT) * (size if name in GROWS else 1.0),
    )


def _id(fold: int, name: str, site: str) -> str:
    return f"fold_{fold}/{name}/{site}"


def run_case(n_sites: int, n_gpus: int, skew: float) -> Case:
    """Plan and simulate one cluster."""
    graph = simulated_experiment(n_sites, skew)
    capacity = Resources(CPUS_PER_GPU * n_gpus, n_gpus)
    schedule, greedy = plan_schedule(graph, capacity), longest_path_first(graph, capacity)
    perturbed = []
    for run in range(N_PERTURBED):
        durations = _perturbed(graph, run)
        times = [simulate(graph, plan, capacity, durations=durations).makespan for plan in (schedule, greedy)]
        perturbed.append(times[0] / times[1])
    return Case(
        n_sites=n_sites,
        n_gpus=n_gpus,
        skew=skew,
        bound=lower_bound(graph, capacity),
        tight_bound=tight_lower_bound(graph, capacity),
        barriers=barrier_makespan(graph, capacity),
        greedy=simulate(graph, greedy, capacity).makespan,
        planned=simulate(graph, schedule, capacity).makespan,
        perturbed=statistics.median(perturbed),
        n_waits=len(schedule.waits),
    )


def _perturbed(graph: Graph, run: int) -> dict[str, float]:
    return {
        stage_id: stage.cost * (1 + SPREAD * (2 * (derive_seed("perturbed", run, stage_id) / 2**63) - 1))
        for stage_id, stage in graph.stages.items()
    }


def format_cases(cases: list[Case]) -> str:
    """The table, a star where the goal counts, and a line of totals."""
    header = (
        f"{'sites':>5} {'GPUs':>4} {'skew':>4} | {'LB h':>6} {'barriers':>8} {'greedy':>7} {'planned':>8} | "
        f"{'tight LB':>8} {'planned':>7} | {'barriers/planned':>16} | {'planned/greedy, +-30 %':>22} | {'waits':>5}"
    )
    lines = ["makespans over the lower bound LB, then over the tight one (given over LB)", header, "-" * len(header)]
    lines += [_row(case) for case in cases]
    return "\n".join([*lines, "-" * len(header), _totals(cases)])


def _row(case: Case) -> str:
    barriers, greedy, planned, tight = (
        value / case.bound for value in (case.barriers, case.greedy, case.planned, case.tight_bound)
    )
    star = "*" if _counts(case) else " "
    return (
        f"{case.n_sites:5d} {case.n_gpus:4d} {case.skew:4g} | {case.bound:6.1f} {barriers:8.3f} {greedy:7.3f} "
        f"{planned:7.3f}{star} | {tight:8.3f} {planned / tight:7.3f} | {barriers / planned:16.3f} | "
        f"{case.perturbed:22.3f} | {case.n_waits:5d}"
    )


def _totals(cases: list[Case]) -> str:
    counted = [case for case in cases if _counts(case)]
    n_goal = sum(case.planned <= GOAL * case.bound for case in cases)
    n_goal_counted = sum(case.planned <= GOAL * case.bound for case in counted)
    n_above = sum(_is_above_barriers(case) for case in cases)
    n_greedy_above = sum(case.greedy > case.barriers * (1 + RELATIVE_TOLERANCE) for case in cases)
    return (
        f"{len(cases)} cases: {n_goal} within {GOAL:g} of LB ({n_goal_counted} of {len(counted)} marked *, "
        f"sites >= 2 GPUs); largest over tight LB {max(case.planned / case.tight_bound for case in cases):.3f}; "
        f"above the barrier program: {n_above} (greedy: {n_greedy_above}); "
        f"mean gain over barriers {statistics.mean(case.barriers / case.planned for case in cases):.3f}"
    )


def _counts(case: Case) -> bool:
    return case.n_sites >= 2 * case.n_gpus


def _is_above_barriers(case: Case) -> bool:
    return case.planned > case.barriers * (1 + RELATIVE_TOLERANCE)


@dataclass(frozen=True)
class DispatchCost:
    """What ordering a graph costs."""

    n_stages: int
    planning_s: float
    dispatch_us: float  # per stage: choosing, starting and ending it


def dispatch_cost(n_sites: int = 8, folds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> DispatchCost:
    """CPU time to plan five folds of the experiment, and the Dispatcher's time per stage when they all run."""
    graph, capacity = simulated_experiment(n_sites, SKEWS[-1], folds), Resources(64, 8)
    began = time.process_time()
    schedule = plan_schedule(graph, capacity)
    planned = time.process_time()
    dispatcher, running = Dispatcher(graph, schedule, capacity, ()), list[str]()
    while new := dispatcher.next_stages() or running:
        for stage_id in new if new is not running else ():
            dispatcher.started(stage_id)
            running.append(stage_id)
        dispatcher.finished(running.pop(0))
    n_stages = len(graph.stages)
    return DispatchCost(n_stages, planned - began, 1e6 * (time.process_time() - planned) / n_stages)


def nothing(context: StageContext) -> None:
    """A stage that does nothing, so that only what surrounds it is measured."""


def executor_cost(kind: str, n_stages: int = 40) -> float:
    """Wall seconds per empty stage, from the run loop through the executor to the manifest, workers being warm."""
    executor = build_executor(ClusterConfig(kind=kind), None)
    n_workers = max(1, int(executor.capacity.cpus))
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run_empty(Path(folder) / "warm_up", 4 * n_workers, executor)
            began = time.perf_counter()
            _run_empty(Path(folder) / "measured", n_stages, executor)
            return (time.perf_counter() - began) / n_stages
    finally:
        executor.close()


def _run_empty(run: Path, n_stages: int, executor: Executor) -> None:
    stages = [Stage("nothing", 0, str(i), f"{__name__}:nothing", {}, {}) for i in range(n_stages)]
    graph = Graph({stage.id: stage for stage in stages})
    result = run_graph(plan_run(graph, Store(run), {}), Store(run), executor)
    if result.failed:
        raise RuntimeError(f"an empty stage failed: {result.failed[0].error}")


def main() -> int:
    """Print the sections; 1 if the planned schedule is ever slower than the barrier program."""
    logging.basicConfig(level=logging.INFO)
    cases = [run_case(n_sites, n_gpus, skew) for n_sites in SITES for n_gpus in GPUS for skew in SKEWS]
    sys.stdout.write(format_cases(cases) + "\n\n")
    cost = dispatch_cost()
    sys.stdout.write(
        f"planning {cost.n_stages} stages: {cost.planning_s:.2f} s of CPU; "
        f"dispatcher: {cost.dispatch_us:.0f} us per stage\n"
    )
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    for kind in ("inline", "ray"):
        sys.stdout.write(f"{kind} executor: {1e3 * executor_cost(kind):.1f} ms of wall time per empty stage\n")
    return int(any(_is_above_barriers(case) for case in cases))


if __name__ == "__main__":
    from engine.scheduling.benchmark import (
        main as run_as_module,  # so that Ray's workers find ``nothing`` under its real name
    )

    sys.exit(run_as_module())
