"""Run a stage graph: what is done stays, what is ready starts, what fails stops only what needs it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from engine.executors import Executor
from engine.graph import within
from engine.progress_display import ProgressDisplay
from engine.run_plan import RunPlan
from engine.run_stage import Outcome
from engine.scheduling.scheduler import Dispatcher, plan_schedule
from engine.store import Store

log = logging.getLogger(__name__)

POLL_S = 0.5


@dataclass(frozen=True)
class RunResult:
    """What happened: stages that ran, failed (with their outcome), or could not start for a failure above them."""

    finished: tuple[str, ...]
    failed: tuple[Outcome, ...]
    blocked: tuple[str, ...]


def run_graph(plan: RunPlan, store: Store, executor: Executor) -> RunResult:
    """Run every stage that is not done, each as soon as its inputs and its resources are there."""
    graph, done = within(plan.graph, executor.capacity), plan.done
    executor.check(graph)
    schedule = plan_schedule(graph, executor.capacity, done)
    dispatcher = Dispatcher(graph, schedule, executor.capacity, done)
    to_do = {stage_id: stage.cost for stage_id, stage in graph.stages.items() if stage_id not in done}
    finished: list[str] = []
    failed: list[Outcome] = []
    blocked: set[str] = set()
    n_running = 0
    with ProgressDisplay(to_do, len(graph.stages) - len(to_do)) as display:
        while True:
            for stage_id in dispatcher.next_stages()[: executor.max_starts]:
                stage = graph.stages[stage_id]
                dispatcher.started(stage_id)
                display.started(stage_id, store.progress_path(stage))
                executor.submit(stage, store.run, plan.keys[stage_id], resumes=plan.states[stage_id] == "resume")
                n_running += 1
            if not n_running:
                break
            for outcome in executor.wait(POLL_S):
                n_running -= 1
                display.ended(outcome.stage_id, outcome.seconds, outcome.error)
                if outcome.error is None:
                    dispatcher.finished(outcome.stage_id)
                    finished.append(outcome.stage_id)
                else:
                    blocked |= set(dispatcher.failed(outcome.stage_id))
                    failed.append(outcome)
            display.refresh()
    return RunResult(tuple(finished), tuple(failed), tuple(sorted(blocked)))
