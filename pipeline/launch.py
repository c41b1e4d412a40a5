"""From a checked configuration to a finished run: data, graph, what is done, dry run, stages, tables and report."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.exit_codes import ExitCode
from common.files import read_json, sha256_of_json, write_json
from common.settings import to_dict
from dataset.check import check_cases
from dataset.source import Case, content_digest, load_cases
from engine.run import RunResult, run_graph
from engine.run_plan import RunPlan, plan_run
from engine.store import Store, check_writable
from features.embedders import check_embedder
from pipeline.config import ExperimentConfig, Union, experiment_config
from pipeline.experiment import build_graph, planned_sites
from pipeline.skip import skipped_stages
from pipeline.stage_factory import ALL
from pipeline.tables import format_plan, write_fold_results
from sharing import Refusal, read_refusal

log = logging.getLogger(__name__)

BEGUN = "begun_by_other_code"  # in a manifest
CHECKED_DATA, RUN_RECORD, OTHER_CODE = "checked_data.json", "run.json", "other_code.json"


def run_experiment(values: Mapping[str, Any]) -> ExitCode:
    """Check a composed configuration and carry it out; bad input is said in the log. Returns the exit code."""
    try:
        return launch(experiment_config(values))
    except InputError as error:
        log.error("%s", error)
        return error.exit_code


def launch(config: ExperimentConfig) -> ExitCode:
    """Carry out one experiment; returns the process's exit code.

    Raises:
        InputError: bad data, a folder that cannot be written, resources that are not there, before any training.
    """
    store = Store(config.run)
    cases = read_cases(config)
    if config.dry_run:
        sites = planned_sites(config, sorted({case.site for case in cases}))
        log.info("%s", format_plan(plan_experiment(config, store, cases), config, sites, cases))
        return ExitCode.DONE
    if config.evaluation.synthetic:
        check_embedder(config.memorization.embedder, config.memorization.weights)
    check_writable(config.run)
    with _only_one(config.run):
        plan = plan_experiment(config, store, cases)
        _check_data(config, store, cases)
        for stage_id, identity in plan.taken_over.items():
            store.take_over(plan.graph.stages[stage_id], identity)
        _write_run_record(config)
        _write_unions(config, planned_sites(config, sorted({case.site for case in cases})))
        result = _run(config, plan, store)
        for fold in config.folds:
            _write_results(store, plan, config, fold)
    return _conclude(result, store, plan)


def read_cases(config: ExperimentConfig) -> tuple[Case, ...]:
    """The cases of the source; a dry run of an experiment whose data is not here goes on without them."""
    try:
        return load_cases(config.source, config.data_dir)
    except InputError as error:
        if not (config.dry_run and config.data.sites):
            raise
        log.warning("data not read, so every stage counts as to do: %s", error)
        return ()


def plan_experiment(config: ExperimentConfig, store: Store, cases: Sequence[Case]) -> RunPlan:
    """All stages of the experiment, and which of them are done."""
    found = sorted({case.site for case in cases})
    graph = build_graph(config, planned_sites(config, found))
    data = {site: content_digest([case for case in cases if case.site == site]) for site in found}
    plan = plan_run(
        graph,
        store,
        data,
        config.general.redo,
        same_data=_is_checked(config, store, cases),
        same_command=_is_the_last_command(config),
    )
    skipped = skipped_stages(config.skip, graph)
    unmade = {stage_id for stage_id in skipped if store.manifest(graph.stages[stage_id]) is None}
    for stage_id in unmade:
        skipped |= set(graph.descendants(stage_id))
    return replace(plan, states={**plan.states, **dict.fromkeys(skipped, "skipped")})


def _check_data(config: ExperimentConfig, store: Store, cases: Sequence[Case]) -> None:
    """Decode everything once before anything is trained; data that passed is not decoded again."""
    if _is_checked(config, store, cases):
        return
    report = check_cases(cases, config.source)
    is_volumetric = any(len(shape) == 3 for shape in report.shapes_px)
    if config.data.original_data_was_png is not None and config.data.original_data_was_png == is_volumetric:
        raise InputError(
            f"original_data_was_png={config.data.original_data_was_png}, but the files say otherwise",
            where="data.original_data_was_png",
            fix="leave the key out: it follows from the files",
        )
    for warning in report.warnings:
        log.warning("%s", warning)
    write_json(store.run / CHECKED_DATA, {"digest": _identity_of_data(config, cases)})


def _is_checked(config: ExperimentConfig, store: Store, cases: Sequence[Case]) -> bool:
    """Whether the last run found these cases, and found them good."""
    record = store.run / CHECKED_DATA
    return record.is_file() and read_json(record)["digest"] == _identity_of_data(config, cases)


def _identity_of_data(config: ExperimentConfig, cases: Sequence[Case]) -> str:
    return sha256_of_json([content_digest(cases), repr(config.source)])


def _run(config: ExperimentConfig, plan: RunPlan, store: Store) -> RunResult:
    from engine.executors import build_executor

    n_to_do = len(plan.graph.stages) - len(plan.done)
    log.info("%s: %d stages, %d to do", store.run, len(plan.graph.stages), n_to_do)
    if not n_to_do:
        return RunResult((), (), ())
    executor = build_executor(config.cluster, config.general.ray_address)
    try:
        return run_graph(plan, store, executor)
    finally:
        executor.close()


def _command() -> str:
    return f"python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"


def _is_the_last_command(config: ExperimentConfig) -> bool:
    """Whether the last run of this experiment was started by these words; a dry run and a redo are the same run."""
    records = [config.run / f"fold_{fold}" / RUN_RECORD for fold in config.folds]
    commands = [read_json(record)["command"] for record in records if record.is_file()]
    return bool(commands) and all(_words(command) == _words(_command()) for command in commands)


def _words(command: str) -> list[str]:
    return [word for word in shlex.split(command) if not word.startswith(("dry_run=", "general.redo="))]


def _write_run_record(config: ExperimentConfig) -> None:
    for fold in config.folds:
        record = {
            "command": _command(),
            "exp_name": config.general.exp_name,
            "exp_desc": config.general.exp_desc,
        }
        write_json(config.run / f"fold_{fold}" / RUN_RECORD, {**record, "seed_base": config.general.seed_base})


def _write_unions(config: ExperimentConfig, sites: Sequence[str]) -> None:
    """Which sites stand behind the names in the tables of a scaling study."""
    unions = config.scaling.named_unions(sites)
    if not unions:
        return
    for fold in config.folds:
        named = [to_dict(union) for union in (*unions, Union(ALL, tuple(sites)))]
        write_json(config.run / f"fold_{fold}" / "scaling.json", {"unions": named})


def _write_results(store: Store, plan: RunPlan, config: ExperimentConfig, fold: int) -> None:
    """Tables and report of a fold, from whatever is finished; skipped where nothing changed since they were written."""
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
        evaluated = [store.folder(stage.id) for stage in stages if stage.name == "evaluate" and manifests[stage.id]]
        write_json(folder / OTHER_CODE, other_code)  # the report names them
        write_fold_results(store.run, fold, evaluated)
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
