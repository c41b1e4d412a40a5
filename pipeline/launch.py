"""From a checked configuration to a finished run: data, graph, what is done, dry run, stages, tables and report."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import InputError, StoppedError
from common.exit_codes import ExitCode
from common.files import read_json, sha256_of_json, write_json
from engine.run import RunResult, run_graph
from engine.run_plan import RunPlan, plan_run
from engine.store import Store, check_writable
from pipeline.config import RunConfig
from pipeline.experiments import NNUNET, Experiment
from pipeline.site_data import SiteData
from pipeline.skip import skipped_stages
from pipeline.tables import format_plan
from sharing import Refusal, read_refusal

log = logging.getLogger(__name__)

BEGUN = "begun_by_other_code"  # in a manifest
RUN_RECORD, OTHER_CODE = "run.json", "other_code.json"


def run_experiment(experiment: Experiment, values: Mapping[str, Any]) -> ExitCode:
    """Check a composed configuration and carry it out; bad input is said in the log. Returns the exit code."""
    try:
        return launch(experiment.configure(values), experiment)
    except InputError as error:
        log.error("%s", error)
        return error.exit_code
    except StoppedError as error:
        log.error("%s", error)
        return ExitCode.STOPPED


def launch(config: RunConfig, experiment: Experiment = NNUNET) -> ExitCode:
    """Carry out one experiment; returns the process's exit code.

    Raises:
        InputError: bad data, a folder that cannot be written, resources that are not there, before any training.
    """
    store = Store(config.run)
    data = experiment.read_sites(config)
    if config.dry_run:
        plan, facts = plan_experiment(config, store, data, experiment), experiment.describe(config, data)
        log.info("%s", format_plan(plan, facts, pins_sites=config.cluster.pin_sites))
        return ExitCode.DONE
    check_writable(config.run)
    with _only_one(config.run):
        plan = plan_experiment(config, store, data, experiment)
        experiment.begin(config, store.run, data)
        for stage_id, identity in plan.taken_over.items():
            store.take_over(plan.graph.stages[stage_id], identity)
        _write_run_record(config, experiment)
        result = _run(config, plan, store)
        for fold in config.folds:
            _write_results(store, plan, experiment, fold)
    return _conclude(result, store, plan)


def plan_experiment(config: RunConfig, store: Store, data: SiteData, experiment: Experiment = NNUNET) -> RunPlan:
    """All stages of the experiment, and which of them are done."""
    graph = experiment.build_graph(config, data.sites)
    same_data, same_command = data.is_checked(store.run), _is_the_last_command(config)
    plan = plan_run(graph, store, data.digests, config.general.redo, same_data=same_data, same_command=same_command)
    skipped = skipped_stages(config.skip, graph)
    unmade = {stage_id for stage_id in skipped if store.manifest(graph.stages[stage_id]) is None}
    for stage_id in unmade:
        skipped |= set(graph.descendants(stage_id))
    return replace(plan, states={**plan.states, **dict.fromkeys(skipped, "skipped")})


def _run(config: RunConfig, plan: RunPlan, store: Store) -> RunResult:
    from engine.executors import build_executor

    n_to_do = len(plan.graph.stages) - len(plan.done)
    log.info("%s: %d stages, %d to do", store.run, len(plan.graph.stages), n_to_do)
    if not n_to_do:
        return RunResult((), (), ())
    with closing(build_executor(config.cluster, config.general.ray_address)) as executor:
        return run_graph(plan, store, executor)


def _command() -> str:
    return f"python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"


def _is_the_last_command(config: RunConfig) -> bool:
    """Whether the last run of this experiment was started by these words; a dry run and a redo are the same run."""
    records = [config.run / f"fold_{fold}" / RUN_RECORD for fold in config.folds]
    commands = [read_json(record)["command"] for record in records if record.is_file()]
    return bool(commands) and all(_words(command) == _words(_command()) for command in commands)


def _words(command: str) -> list[str]:
    return [word for word in shlex.split(command) if not word.startswith(("dry_run=", "general.redo="))]


def _write_run_record(config: RunConfig, experiment: Experiment) -> None:
    for fold in config.folds:
        record = {
            "command": _command(),
            "experiment": experiment.imported_as,  # by which a report finds its sections
            "exp_name": config.general.exp_name,
            "exp_desc": config.general.exp_desc,
            "seed_base": config.general.seed_base,
        }
        write_json(config.run / f"fold_{fold}" / RUN_RECORD, record)


def _write_results(store: Store, plan: RunPlan, experiment: Experiment, fold: int) -> None:
    """Tables and report of a fold, from whatever is finished; skipped where nothing changed since they were written."""
    from evaluation.report.page import write_report

    folder = store.run / f"fold_{fold}"
    stages = [stage for stage in plan.graph.stages.values() if stage.fold == fold]
    manifests = {stage.id: store.manifest(stage) for stage in stages}
    other_code = _made_by_other_code(plan, manifests)
    identity = sha256_of_json(
        [{name: manifest["digest"] for name, manifest in manifests.items() if manifest}, other_code]
    )
    record = folder / "reported.json"
    table = folder / "summary.txt"
    if not (record.is_file() and read_json(record)["digest"] == identity and (folder / "report.html").is_file()):
        experiment.write_results(folder, {name: store.folder(name) for name, manifest in manifests.items() if manifest})
        write_json(folder / OTHER_CODE, other_code)  # the report names them
        write_report(store.run, folds=[fold], out=folder, sections=experiment.report_sections)
        write_json(record, {"digest": identity})
    if table.is_file():
        log.info("\n%s\n", table.read_text(encoding="utf-8").rstrip())
    log.info("report: %s", folder / "report.html")


def _made_by_other_code(plan: RunPlan, manifests: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Finished stages that the present code did not make, or did not begin, and what changed since."""
    begun = {name: f"begun by other code: {words}" for name, of in manifests.items() if of and (words := of.get(BEGUN))}
    made = {name: words for name, words in plan.other_code.items() if name in manifests}
    return begun | {name: f"made by other code: {words}" for name, words in made.items()}


def _conclude(result: RunResult, store: Store, plan: RunPlan) -> ExitCode:
    for outcome in result.failed:
        log.error("FAILED %s: %s\n  log: %s", outcome.stage_id, outcome.error, outcome.log)
    if result.blocked:
        log.error("not started, because they need it: %s", ", ".join(result.blocked))
    if result.failed:
        log.error("The other stages are finished and stay so. Mend the cause and run the same command again.")
    refused = _refused(store, plan)
    for stage_id, refusal in refused.items():
        log.error("REFUSED %s: nothing leaves this site. %s", stage_id, refusal)
    if result.failed:
        return ExitCode.FAILED
    return ExitCode.REFUSED if refused else ExitCode.DONE  # refused: all stages are done, and gates refused an export


def _refused(store: Store, plan: RunPlan) -> dict[str, Refusal]:
    """Finished stages whose folder would leave a site, and did not pass its gates."""
    shares = (stage for stage in plan.graph.stages.values() if stage.leaves_site and store.manifest(stage))
    found = {stage.id: read_refusal(store.folder(stage.id)) for stage in shares}
    return {stage_id: refusal for stage_id, refusal in found.items() if refusal is not None}


@contextmanager
def _only_one(run: Path) -> Iterator[None]:
    """Two runs of one experiment at once would overwrite each other: the second is refused. Freed if we are killed."""
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another process runs this experiment", where=run, fix="wait for it, or set another general.exp_name"
            ) from error
        lock.write(str(os.getpid()))
        lock.flush()
        yield
