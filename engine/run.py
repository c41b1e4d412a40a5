"""Run a stage graph: what is done stays, what is ready starts, what fails stops only what needs it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from engine.executors import Executor
from engine.graph import Graph, within
from engine.progress_display import ProgressDisplay
from engine.run_stage import Outcome
from engine.scheduling.scheduler import Dispatcher, plan_schedule
from engine.store import Store

log = logging.getLogger(__name__)

POLL_S = 0.5


@dataclass(frozen=True)
class RunPlan:
    """A graph with what is known of it before anything runs."""

    graph: Graph
    digests: Mapping[str, str]
    states: Mapping[str, str]  # stage id -> done, resume, redo, to do, skipped

    @property
    def done(self) -> set[str]:
        """Stages that need not run."""
        return {stage_id for stage_id, state in self.states.items() if state in ("done", "skipped")}


@dataclass(frozen=True)
class RunResult:
    """What happened: stages that ran, failed (with their outcome), or could not start for a failure above them."""

    finished: tuple[str, ...]
    failed: tuple[Outcome, ...]
    blocked: tuple[str, ...]


def run_graph(
    graph: Graph, store: Store, digests: Mapping[str, str], done: Collection[str], executor: Executor
) -> RunResult:
    """Run every stage that is not in ``done``, each as soon as its inputs and its resources are there."""
    graph = within(graph, executor.capacity)
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
                input_digests = {role: digests[source] for role, source in stage.inputs.items()}
                dispatcher.started(stage_id)
                display.started(stage_id, store.progress_path(stage))
                executor.submit(stage, store.run, digests[stage_id], input_digests)
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
