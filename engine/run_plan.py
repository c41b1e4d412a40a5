"""What makes a stage done: its state before a run, decided from its manifest and from what it would be made of now.

- Settings, seed, data or inputs changed: the stage is redone, with all below it.
- Only code changed: a finished training stays and is named; other stages are redone. What reads a training that stays
  does not change by it.
- Nothing changed: the stage is done. Half written: it starts again, a training from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import InputError
from common.files import sha256_of_json
from engine.dependencies import code_of, describe_changes
from engine.graph import Graph, Stage
from engine.store import StageKey, Store

CHANGED_CODE = "changed_code"
READ_BY_ALL = "engine.run_stage:StageContext"  # every stage function takes one


@dataclass(frozen=True)
class RunPlan:
    """A graph with what is known of it before anything runs."""

    graph: Graph
    keys: Mapping[str, StageKey]  # stage id -> what its result follows from, if it is made now
    states: Mapping[str, str]  # stage id -> done, resume, redo, to do, skipped
    other_code: Mapping[str, str] = field(default_factory=dict)  # finished trainings that stay -> what changed since
    taken_over: Mapping[str, str] = field(default_factory=dict)  # of an older version: stage id -> its identity

    @property
    def done(self) -> set[str]:
        """Stages that need not run."""
        return {stage_id for stage_id, state in self.states.items() if state in ("done", "skipped")}


@dataclass(frozen=True)
class _Made:
    """A finished result: what it follows from, as far as its manifest tells."""

    identity: str
    digest: str
    inputs: Mapping[str, str]
    code: Mapping[str, str] | None  # None: made before the code was noted


def plan_run(
    graph: Graph,
    store: Store,
    data_digests: Mapping[str, str],
    redo: str | Sequence[str] = (),
    *,
    same_data: bool = False,
    same_command: bool = False,
) -> RunPlan:
    """The state of every stage, inputs before dependants.

    Args:
        data_digests: of the raw data, by site; it is part of a stage whose settings name a ``source``.
        redo: ``changed_code``, or names of stages: which finished trainings are redone if other code made them.
        same_data, same_command: whether they are those of the last run. They count only for results of an older version
            of the program, which did not note what they follow from.

    Raises:
        InputError: ``redo`` names no stage.
    """
    asked = {redo} if isinstance(redo, str) else set(redo)
    _check_redo(asked, graph)
    keys: dict[str, StageKey] = {}
    states: dict[str, str] = {}
    made: dict[str, _Made] = {}
    results: dict[str, str] = {}  # stage id -> digest of the result that its dependants will read
    other_code: dict[str, str] = {}
    taken_over: dict[str, str] = {}
    for stage_id in graph.order:
        stage = graph.stages[stage_id]
        data = data_digests.get(stage.site) if "source" in stage.settings else None
        identities = {role: keys[source].identity for role, source in stage.inputs.items()}
        key = keys[stage_id] = StageKey(
            identity=_identity(stage, stage.settings, stage.seed, data, identities),
            code=_code_of(stage),
            inputs={role: results[source] for role, source in stage.inputs.items()},
        )
        manifest = store.manifest(stage) if store.is_whole(stage) else None
        if manifest is not None:
            made[stage_id] = _made_from(stage, manifest, made, data if same_data else "unknown")
            if "identity" not in manifest:
                taken_over[stage_id] = made[stage_id].identity
        found, is_asked = made.get(stage_id), bool(asked & {CHANGED_CODE, stage.name, stage.id})
        results[stage_id] = key.digest
        if found is not None and found.digest == key.digest:
            states[stage_id] = "done"
        elif found is not None and found.identity == key.identity and stage.is_training and not is_asked:
            states[stage_id] = "done"
            results[stage_id] = found.digest
            other_code[stage_id] = _what_changed(found, key, stage)
        elif _resumes(store, stage, key, same_as_before=same_data and same_command):
            states[stage_id] = "resume"
        else:
            states[stage_id] = "redo" if store.manifest(stage) is not None else "to do"
    return RunPlan(graph, keys, states, other_code, taken_over)


def _code_of(stage: Stage) -> dict[str, str]:
    return code_of([stage.function, *stage.code, READ_BY_ALL])


def _identity(stage: Stage, settings: Mapping[str, Any], seed: int, data: str | None, inputs: Mapping[str, str]) -> str:
    place = [stage.name, stage.fold, stage.site, stage.part]
    made_of = {"stage": place, "settings": settings, "seed": seed, "data": data, "inputs": dict(inputs)}
    return sha256_of_json(made_of)


def _made_from(stage: Stage, manifest: Mapping[str, Any], made: Mapping[str, _Made], data: str | None) -> _Made:
    """What a finished result follows from; of one by an older version, from the settings and inputs that it noted."""
    identity = manifest.get("identity")
    if identity is None:
        sources = {role: made.get(source) for role, source in stage.inputs.items()}
        inputs = {
            role: source.identity if source and source.digest == manifest["inputs"].get(role) else "unknown"
            for role, source in sources.items()
        }
        data = data if "source" in stage.settings else None
        identity = _identity(stage, manifest["settings"], manifest["seed"], data, inputs)
    return _Made(identity, manifest["digest"], manifest["inputs"], manifest.get("code"))


def _what_changed(found: _Made, key: StageKey, stage: Stage) -> str:
    if found.code is None:
        return "a version of the program that did not note its code"
    if changes := describe_changes(found.code, key.code):
        return changes
    roles = [role for role in key.inputs if found.inputs.get(role) != key.inputs[role]]
    return f"the code of {', '.join(sorted(stage.inputs[role] for role in roles))} changed"


def _resumes(store: Store, stage: Stage, key: StageKey, *, same_as_before: bool) -> bool:
    """Whether a half-written training goes on; one that an older version began, if it is the same command and data."""
    begun = store.begun(stage)
    if begun is None or not stage.is_training or store.manifest(stage) is not None:
        return False
    return begun["identity"] == key.identity if "identity" in begun else same_as_before


def _check_redo(asked: set[str], graph: Graph) -> None:
    known = {name for stage in graph.stages.values() for name in (stage.name, stage.id)}
    trainings = sorted({stage.name for stage in graph.stages.values() if stage.is_training})
    for name in sorted(asked - known - {CHANGED_CODE}):
        raise InputError(
            f"there is no stage {name!r}",
            where="general.redo",
            fix=f"use {CHANGED_CODE}, or a list of trainings: {', '.join(trainings)}",
        )
