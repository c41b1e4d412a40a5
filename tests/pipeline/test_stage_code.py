"""What a stage's digest covers, held against what its function really executed in the tiny experiment."""

from __future__ import annotations

import ast
import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.tiny_experiment import composed, run_command

from engine.dependencies import code_of
from engine.run_plan import READ_BY_ALL
from pipeline.experiment import build_graph


@functools.cache
def constants_of(module: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / (module.replace(".", "/") + ".py")).read_text())
    names = {
        node.id
        for statement in tree.body
        if isinstance(statement, (ast.Assign, ast.AnnAssign))
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return frozenset(name for name in names if name.isupper())


def executed(tiny_run: Path) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Roots of a stage -> module, definition and names read, of every function that ran for it."""
    return json.loads((tiny_run.parent.parent / "executed.json").read_text())


def test_every_function_that_a_stage_executed_is_part_of_what_makes_it_done(tiny_run: Path) -> None:
    """Too little was the worse fault: a result that stays although the code that makes it changed."""
    for roots, functions in executed(tiny_run).items():
        covered = code_of([*roots.split(), READ_BY_ALL])
        ran = {f"{module}:{name}" for module, name, _ in functions if not module.startswith("tests.")}
        assert ran and ran <= covered.keys(), (roots, sorted(ran - covered.keys()))


def test_every_constant_that_a_stage_read_is_part_of_what_makes_it_done(tiny_run: Path) -> None:
    n_read = 0
    for roots, functions in executed(tiny_run).items():
        covered = code_of([*roots.split(), READ_BY_ALL])
        read = {
            f"{module}:{constant}"
            for module, _, names in functions
            if not module.startswith("tests.")
            for constant in constants_of(module) & set(names)
        }
        n_read += len(read)
        assert read <= covered.keys(), (roots, sorted(read - covered.keys()))
    assert n_read > 100


def test_no_stage_of_a_stylegan2_run_depends_on_the_diffusion_models() -> None:
    stages = build_graph(composed("demo"), ("A", "B")).stages.values()
    roots = {(stage.function, *stage.code) for stage in stages}
    reached = {name for each in roots for name in code_of([*each, READ_BY_ALL])}
    assert any(name.startswith("gan.") for name in reached)
    assert [name for name in reached if name.startswith("diffusion.")] == []


@pytest.fixture
def updated_program(tmp_path: Path) -> Path:
    """A copy of the program, to be changed."""
    target = tmp_path / "program"
    for room in {path.parent for path in REPOSITORY.glob("*/*.py")} - {REPOSITORY / "tests"} | {REPOSITORY / "config"}:
        shutil.copytree(room, target / room.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run_nnunet.py", target)
    return target


def dry_run(program: Path, tiny_run: Path) -> tuple[dict[str, str], str]:
    """The state of every stage, as this program sees it, and all that it says."""
    command = run_command("dry_run=true", cwd=tiny_run.parent.parent)
    command[1] = str(program / "run_nnunet.py")
    ended = subprocess.run(command, cwd=tiny_run.parent.parent, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return dict(re.findall(r"^(fold_0/\S+) +(\S+(?: do)?) ", ended.stdout, re.MULTILINE)), ended.stdout


def test_comments_in_every_file_leave_all_stages_done(tiny_run: Path, updated_program: Path) -> None:
    for path in updated_program.rglob("*.py"):
        path.write_text(f"# Edited.\n{path.read_text()}\n# The end.\n")
    states, said = dry_run(updated_program, tiny_run)
    assert len(states) == 52 and set(states.values()) == {"done"} and "52 stages, 0 to do" in said


def test_one_constant_marks_the_stages_that_read_it_and_what_is_made_of_them(
    tiny_run: Path, updated_program: Path
) -> None:
    """``IMAGES_AT_ONCE`` is read by the check across sites alone; the pool is made of its answers."""
    edit(updated_program / "pipeline/stages/check.py", "IMAGES_AT_ONCE = 256", "IMAGES_AT_ONCE = 255")
    states, said = dry_run(updated_program, tiny_run)
    checks = {"fold_0/check/A/B", "fold_0/check/B/A"}
    assert {name for name, state in states.items() if state != "done"} == checks | {"fold_0/merge/all"}
    assert "fold_0/segment_syn/all: the code of fold_0/merge/all changed" in said


def test_an_update_of_the_generators_code_keeps_the_finished_generators_and_names_them(
    tiny_run: Path, updated_program: Path
) -> None:
    """Someone who updates in the third week of a study keeps three weeks of training."""
    edit(updated_program / "gan/train_step.py", "LARGEST_GRADIENT = 1e5", "LARGEST_GRADIENT = 1e6")
    states, said = dry_run(updated_program, tiny_run)
    assert all(states[f"fold_0/generator/{site}"] == "done" for site in "AB")
    assert "general.redo=changed_code" in said and said.count("gan.train_step:LARGEST_GRADIENT changed") == 2
    assert states["fold_0/segment_real/A"] == states["fold_0/finetune/B"] == "done"


def edit(path: Path, was: str, is_now: str) -> None:
    text = path.read_text()
    assert text.count(was) == 1
    path.write_text(text.replace(was, is_now))
