"""Figures of the scheduler on simulated clusters.

    python -m studies.scheduler_benchmark

The makespan over its lower bound, beside the barrier program's, for 2 to 8 sites on 1 to 8 GPUs; then what planning and
dispatching cost, on a graph of five folds and per empty stage through the real executors. The command fails if any case
is above the barrier program.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import string
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from common.command import command
from common.exit_codes import ExitCode
from common.markdown import markdown_table
from common.seeds import derive_seed
from engine.cluster import ClusterConfig
from engine.executors import build_executor
from engine.graph import Graph, Resources, Stage
from engine.run import run_graph
from engine.run_plan import plan_run
from engine.run_stage import StageContext
from engine.scheduling.dispatcher import Dispatcher
from engine.scheduling.scheduler import RELATIVE_TOLERANCE, plan_schedule
from engine.scheduling.simulate import barrier_makespan, longest_path_first, lower_bound, simulate, tight_lower_bound
from engine.store import Store
from pipeline.config import DataConfig, ExperimentConfig
from pipeline.experiment import build_graph

SITES, GPUS, SKEWS = (2, 4, 8), (1, 2, 4, 8), (1.0, 3.0)
CPUS_PER_GPU = 8
GOAL = 1.10  # of the makespan over the lower bound, where there are at least two sites per GPU
COLUMNS = (
    *("sites", "GPUs", "skew", "LB h", "barriers", "greedy", "planned", "tight LB", "planned over tight LB"),
    *("barriers/planned", "planned/greedy, +-30 %", "waits"),
)
N_PERTURBED, SPREAD = 5, 0.3  # runs whose real durations are off by up to this share

TRAIN, EMBED, LIGHT = Resources(4, 1), Resources(2, 0.5), Resources(2, 0)  # as config/cluster/gpu.yaml
HOURS = {"generator": 6.0, "segment_real": 6.0, "segment_syn": 6.0, "finetune": 6.0}
HOURS |= {"sample": 0.5, "calibrate": 0.2, "filter": 0.2, "label": 0.2, "check": 0.2, "evaluate": 0.1}
HOURS_LIGHT = 0.05
GROWS = {"generator", "sample", "calibrate", "filter", "label"}  # with the number of images of the site
RESOURCES = dict.fromkeys(("generator", "segment_real", "segment_syn", "finetune"), TRAIN)
RESOURCES |= dict.fromkeys(("sample", "calibrate", "filter", "label", "check", "evaluate"), EMBED)


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

    @property
    def counts(self) -> bool:
        """Whether the goal is set for it."""
        return self.n_sites >= 2 * self.n_gpus

    @property
    def is_above_barriers(self) -> bool:
        """Whether the planned schedule is slower than the barrier program."""
        return self.planned > self.barriers * (1 + RELATIVE_TOLERANCE)


def site_sizes(n_sites: int, skew: float) -> list[float]:
    """Relative sizes with mean 1, evenly spread; the largest is ``skew`` times the smallest."""
    smallest = 2 / (1 + skew)
    return [smallest * (1 + (skew - 1) * i / max(n_sites - 1, 1)) for i in range(n_sites)]


def simulated_experiment(n_sites: int, skew: float, fold: int | str = 0) -> Graph:
    """The stage graph of the main experiment, with hours as costs; ``fold``: as ``data.fold``."""
    sizes = dict(zip(string.ascii_uppercase, site_sizes(n_sites, skew), strict=False))
    graph = build_graph(ExperimentConfig(data=DataConfig(fold=fold)), tuple(sizes))
    stages = [
        replace(
            stage,
            resources=RESOURCES.get(stage.name, LIGHT),
            cost=HOURS.get(stage.name, HOURS_LIGHT) * (sizes[stage.site] if stage.name in GROWS else 1.0),
        )
        for stage in graph.stages.values()
    ]
    return Graph({stage.id: stage for stage in stages})


def run_case(n_sites: int, n_gpus: int, skew: float) -> Case:
    """Plan and simulate one cluster."""
    graph = simulated_experiment(n_sites, skew)
    capacity = Resources(CPUS_PER_GPU * n_gpus, n_gpus)
    schedule, greedy = plan_schedule(graph, capacity), longest_path_first(graph, capacity)
    perturbed = []
    for run in range(N_PERTURBED):
        durations = {
            stage_id: stage.cost * (1 + SPREAD * (2 * (derive_seed("perturbed", run, stage_id) / 2**63) - 1))
            for stage_id, stage in graph.stages.items()
        }
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


def format_cases(cases: list[Case]) -> str:
    """The table, a star where the goal counts, and a line of totals."""
    rows = []
    for case in cases:
        over = [value / case.bound for value in (case.barriers, case.greedy, case.planned, case.tight_bound)]
        ratios = (*over, case.planned / case.tight_bound, case.barriers / case.planned, case.perturbed)
        barriers, greedy, planned, *others = (f"{ratio:.3f}" for ratio in ratios)
        cluster = (case.n_sites, case.n_gpus, f"{case.skew:g}", f"{case.bound:.1f}")
        rows.append([*cluster, barriers, greedy, planned + "*" * case.counts, *others, case.n_waits])
    within = [case for case in cases if case.planned <= GOAL * case.bound]
    n_greedy_above = sum(case.greedy > case.barriers * (1 + RELATIVE_TOLERANCE) for case in cases)
    totals = (
        f"{len(cases)} cases: {len(within)} within {GOAL:g} of LB ({sum(case.counts for case in within)} of "
        f"{sum(case.counts for case in cases)} marked *, sites >= 2 GPUs); largest over tight LB "
        f"{max(case.planned / case.tight_bound for case in cases):.3f}; above the barrier program: "
        f"{sum(case.is_above_barriers for case in cases)} (greedy: {n_greedy_above}); "
        f"mean gain over barriers {statistics.mean(case.barriers / case.planned for case in cases):.3f}"
    )
    title = "makespans over the lower bound LB, then over the tight one (given over LB)"
    return "\n".join([title, "", *markdown_table(COLUMNS, rows), "", totals])


def dispatch_cost(n_sites: int = 8) -> str:
    """CPU time to plan five folds of the experiment, and the Dispatcher's time per stage when they all run."""
    graph, capacity = simulated_experiment(n_sites, SKEWS[-1], fold="all"), Resources(64, 8)
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
    dispatch_us = 1e6 * (time.process_time() - planned) / n_stages
    return f"planning {n_stages} stages: {planned - began:.2f} s of CPU; dispatcher: {dispatch_us:.0f} us per stage"


def nothing(context: StageContext) -> None:
    """A stage that does nothing, so that only what surrounds it is measured."""


def executor_cost(kind: str, n_stages: int = 40) -> float:
    """Wall seconds per empty stage, from the run loop through the executor to the manifest, workers being warm."""
    with closing(build_executor(ClusterConfig(kind=kind), None)) as executor, TemporaryDirectory() as folder:
        n_workers = max(1, int(executor.capacity.cpus))
        for name, n in (("warm_up", 4 * n_workers), ("measured", n_stages)):
            stages = [Stage("nothing", 0, str(i), f"{__name__}:nothing", {}, {}) for i in range(n)]
            graph = Graph({stage.id: stage for stage in stages})
            began = time.perf_counter()
            store = Store(Path(folder) / name)
            result = run_graph(plan_run(graph, store, {}), store, executor)
            seconds = time.perf_counter() - began
            if result.failed:
                raise RuntimeError(f"an empty stage failed: {result.failed[0].error}")
        return seconds / n_stages


@command(lambda parser: None)
def main(chosen: argparse.Namespace) -> ExitCode:
    """Print the sections; failed if the planned schedule is ever slower than the barrier program."""
    cases = [run_case(n_sites, n_gpus, skew) for n_sites in SITES for n_gpus in GPUS for skew in SKEWS]
    sys.stdout.write(f"{format_cases(cases)}\n\n{dispatch_cost()}\n")
    logging.getLogger("engine").setLevel(logging.WARNING)
    for kind in ("inline", "ray"):
        sys.stdout.write(f"{kind} executor: {1e3 * executor_cost(kind):.1f} ms of wall time per empty stage\n")
    return ExitCode.FAILED if any(case.is_above_barriers for case in cases) else ExitCode.DONE


if __name__ == "__main__":
    from studies import scheduler_benchmark  # so that Ray's workers find ``nothing`` under its real name

    sys.exit(scheduler_benchmark.main())
