"""What makes a stage done: settings, data, inputs and code, on a small experiment that really runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import InputError
from engine.executors import InlineExecutor
from engine.graph import Graph, Stage
from engine.run import run_graph
from engine.run_plan import RunPlan, plan_run
from engine.store import Store

KINDS = {"prepare": False, "slices": False, "generator": True, "sample": False, "segment": True, "evaluate": False}
INPUTS = {
    "slices": ["prepare"],
    "generator": ["slices"],
    "sample": ["generator"],
    "segment": ["prepare"],
    "evaluate": ["sample", "segment"],
}


def graph_of(**settings: object) -> Graph:
    """prepare -> slices -> generator -> sample -> evaluate, and prepare -> segment -> evaluate."""
    stages = [
        Stage(
            name=kind,
            fold=0,
            site="A",
            function=f"support.small_stages:{'train' if is_training else 'write'}",
            settings={"word": settings.get(kind, kind), **({"source": "here"} if kind == "prepare" else {})},
            inputs={name: f"fold_0/{name}/A" for name in INPUTS.get(kind, [])},
            is_training=is_training,
        )
        for kind, is_training in KINDS.items()
    ]
    return Graph({stage.id: stage for stage in stages})


class Program:
    """A small experiment's folder, and a program whose code can change: one definition a stage."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.code = Store(folder / "run"), dict.fromkeys(KINDS, "1")
        self._graph: Graph | None = None
        monkeypatch.setattr("engine.run_plan._code_of", lambda stage: {f"rooms:{stage.name}": self.code[stage.name]})

    def plan(self, redo: object = (), data: str = "data", **settings: object) -> RunPlan:
        return plan_run(graph_of(**settings), self.store, {"A": data}, redo, same_data=True, same_command=True)

    def run(self, redo: object = (), data: str = "data", **settings: object) -> set[str]:
        """Run what is to do; the kinds that ran."""
        plan = self.plan(redo, data, **settings)
        for stage_id, identity in plan.taken_over.items():
            self.store.take_over(plan.graph.stages[stage_id], identity)
        result = run_graph(plan, self.store, InlineExecutor())
        return {stage_id.split("/")[1] for stage_id in result.finished}

    def states(self, **chosen: object) -> dict[str, str]:
        return {stage_id.split("/")[1]: state for stage_id, state in self.plan(**chosen).states.items()}

    def forget_code(self) -> None:
        """Leave the manifests as the program wrote them before it noted what they follow from."""
        for path in self.store.run.glob("fold_0/*/A/manifest.json"):
            manifest = json.loads(path.read_text())
            for key in ("identity", "code", "begun_by_other_code"):
                manifest.pop(key, None)
            manifest["digest"] = f"old {manifest['digest']}"
            manifest["inputs"] = {role: f"old {digest}" for role, digest in manifest["inputs"].items()}
            path.write_text(json.dumps(manifest))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    found = Program(tmp_path, monkeypatch)
    assert found.run() == set(KINDS)
    return found


def test_nothing_changed_nothing_is_done(program: Program) -> None:
    assert set(program.states().values()) == {"done"} and program.run() == set()


def test_other_settings_redo_a_stage_and_all_below_it_trainings_too(program: Program) -> None:
    assert program.run(slices="thinner") == {"slices", "generator", "sample", "evaluate"}
    assert list(program.store.run.glob("superseded/fold_0/generator/A/*/result.txt"))


def test_other_data_redo_everything(program: Program) -> None:
    assert program.run(data="other") == set(KINDS)


def test_other_code_of_a_training_keeps_it_and_names_it(program: Program) -> None:
    program.code["generator"] = "2"
    plan = program.plan()
    assert plan.other_code == {"fold_0/generator/A": "rooms:generator changed"}
    assert set(plan.states.values()) == {"done"}, "what reads a training that stays does not change by it"


def test_other_code_above_a_training_redoes_the_cheap_stages_and_keeps_the_training(program: Program) -> None:
    program.code["prepare"] = "2"
    assert program.run() == {"prepare", "slices"}
    plan = program.plan()
    assert set(plan.other_code) == {"fold_0/generator/A", "fold_0/segment/A"}
    assert plan.other_code["fold_0/generator/A"] == "the code of fold_0/slices/A changed"
    assert program.run() == set()


def test_other_code_of_a_cheap_stage_redoes_it_and_what_is_below(program: Program) -> None:
    program.code["sample"] = "2"
    assert program.run() == {"sample", "evaluate"}


@pytest.mark.parametrize(
    ("redo", "redone"),
    [
        ("changed_code", {"generator", "sample", "segment", "evaluate"}),
        (["generator"], {"generator", "sample", "evaluate"}),
        (("fold_0/segment/A",), {"segment", "evaluate"}),
    ],
)
def test_trainings_of_other_code_are_redone_where_it_is_asked_for_and_once(program: Program, redo, redone) -> None:
    program.code |= {"generator": "2", "segment": "2"}
    assert program.run(redo=redo) == redone
    assert program.run(redo=redo) == set(), "the same command again must find them done"


def test_redo_of_a_stage_that_is_not_there_is_refused(program: Program) -> None:
    with pytest.raises(InputError, match=r"(?s)general\.redo.*genrator.*generator"):
        program.plan(redo=["genrator"])


def test_a_training_goes_on_from_its_checkpoint_also_after_an_update_and_says_so(program: Program) -> None:
    (program.store.run / "stop_at").touch()
    program.run(generator="longer")
    assert program.states(generator="longer")["generator"] == "resume"
    (program.store.run / "stop_at").unlink()
    program.code["generator"] = "2"
    assert program.states(generator="longer")["generator"] == "resume"
    assert program.run(generator="longer") == {"generator", "sample", "evaluate"}
    folder = program.store.folder("fold_0/generator/A")
    assert (folder / "attempts.txt").read_text() == "from 0\nfrom 4\n"
    assert json.loads((folder / "manifest.json").read_text())["begun_by_other_code"] == "rooms:generator changed"


def test_a_half_written_training_for_other_settings_starts_again(program: Program) -> None:
    (program.store.run / "stop_at").touch()
    program.run(generator="longer")
    (program.store.run / "stop_at").unlink()
    assert program.states(generator="wider")["generator"] == "to do"
    program.run(generator="wider")
    assert (program.store.folder("fold_0/generator/A") / "attempts.txt").read_text() == "from 0\n"


def test_a_run_of_an_older_version_is_taken_over_by_the_same_rule(program: Program) -> None:
    """Its manifests say no code: trainings stay, the rest is made again, also when the first attempt is killed."""
    program.forget_code()
    plan = program.plan()
    trainings = {"fold_0/generator/A", "fold_0/segment/A"}
    assert set(plan.other_code) == trainings == {name for name, state in plan.states.items() if state == "done"}
    for stage_id, identity in plan.taken_over.items():
        program.store.take_over(plan.graph.stages[stage_id], identity)
    some = replace(plan, states={**plan.states, **dict.fromkeys(("fold_0/sample/A", "fold_0/evaluate/A"), "skipped")})
    run_graph(some, program.store, InlineExecutor())  # ended before all was done
    assert program.run() == {"sample", "evaluate"}
    assert set(program.plan().other_code) == trainings
    assert program.run(redo="changed_code") == {"generator", "segment", "sample", "evaluate"}


def test_of_an_older_version_other_settings_or_data_are_still_seen(program: Program) -> None:
    program.forget_code()
    assert program.states(generator="longer")["generator"] == "redo"
    plan = plan_run(graph_of(), program.store, {"A": "data"}, same_data=False)
    assert not plan.other_code and set(plan.states.values()) == {"redo"}


def test_what_an_older_version_half_wrote_goes_on_only_where_data_and_command_are_the_same(program: Program) -> None:
    (program.store.run / "stop_at").touch()
    program.run(generator="longer")
    begun = program.store.run / "fold_0/logs/generator-A.begun.json"
    begun.write_text(json.dumps({"digest": "0123456789abcdef"}))
    assert program.states(generator="longer")["generator"] == "resume"
    graph = graph_of(generator="longer")
    plan = plan_run(graph, program.store, {"A": "data"}, same_data=True, same_command=False)
    assert plan.states["fold_0/generator/A"] == "to do"
    (program.store.run / "stop_at").unlink()
    run_graph(plan, program.store, InlineExecutor())
    assert list(program.store.run.glob("superseded/fold_0/generator/A/*/checkpoint.txt")), "nothing is lost"
