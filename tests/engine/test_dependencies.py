"""Which code a stage depends on, on small programs written for it and on the repository itself."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paths import REPOSITORY

from common.errors import InputError
from engine.dependencies import CodeBase, code_of, describe_changes
from pipeline.stage_factory import KINDS

ROOTS = {kind: f"pipeline.stages.{of.function}" for kind, of in KINDS.items()}

PROGRAM = {
    "__init__": "",
    "stage": """
from room import other
from room.numbers import A, B

def run(x: "Unread") -> None:
    log.info("at work: %s", SAID)
    from room.inside import late
    return late(A), other.used(x), draw(x)

SAID = 1

@drawing
def draw(x):
    return COLOUR

COLOUR = "red"
""",
    "numbers": "A, B, C = 1, 2, 3",
    "inside": """
import importlib

FACTOR = 2

def late(x):
    return FACTOR * x, Shape, "room.named:target"

class Shape:
    sides: "int" = 4

    def area(self):
        return importlib.import_module("room.loaded")
""",
    "other": "def used(x):\n    return x\n\ndef unused(x):\n    return x",
    "named": "def target():\n    return DEPTH\n\nDEPTH = 7\nUNREAD = 8",
    "loaded": "register('loaded')\n\ndef anything():\n    return 1",
}


def program(folder: Path, **changed: tuple[str, str]) -> CodeBase:
    """The small program, with ``module=(was, is_now)`` replaced."""
    (folder / "room").mkdir(parents=True)
    for name, text in PROGRAM.items():
        was, is_now = changed.get(name, ("", ""))
        assert was in text
        (folder / "room" / f"{name}.py").write_text(text.replace(was, is_now, 1) if was else text)
    return CodeBase(folder)


def test_what_a_function_reaches_is_what_it_names_in_whatever_file(tmp_path: Path) -> None:
    """Not whole files: of ``numbers`` one constant, of ``other`` one function; of what is loaded by name everything."""
    assert set(program(tmp_path).code(["room.stage:run"])) == {
        "room.stage:run",
        "room.numbers:A",
        "room.inside:late",
        "room.inside:FACTOR",
        "room.inside:Shape",
        "room.other:used",
        "room.named:target",
        "room.named:DEPTH",
        "room.loaded:anything",
        "room.loaded:<import>",
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"numbers": ("A, B, C = 1,", "A, B, C = 9,")},
        {"inside": ("FACTOR = 2", "FACTOR = 3")},
        {"inside": ('sides: "int" = 4', 'sides: "int" = 5')},
        {"named": ("DEPTH = 7", "DEPTH = 8")},
        {"loaded": ("register('loaded')", "register('other')")},
        {"loaded": ("return 1", "return 2")},
        {"other": ("return x", "return -x")},
    ],
)
def test_a_change_of_what_is_reached_changes_the_code(tmp_path: Path, changed: dict) -> None:
    before = program(tmp_path / "before").code(["room.stage:run"])
    assert program(tmp_path / "after", **changed).code(["room.stage:run"]) != before


@pytest.mark.parametrize(
    "changed",
    [
        {"numbers": ("2, 3", "8, 9")},
        {"stage": ('"at work: %s", SAID', '"working on %s", SAID + 1')},
        {"stage": ("SAID = 1", "SAID = 2")},
        {"stage": ('COLOUR = "red"', 'COLOUR = "blue"')},
        {"stage": ('(x: "Unread") -> None', '(x: "Other") -> int')},
        {"named": ("UNREAD = 8", "UNREAD = 9")},
        {"inside": ("FACTOR = 2", "FACTOR = (2)  # twice")},
        {"other": ("def used(x):\n", 'def used(x):\n    """Documented."""\n')},
    ],
)
def test_neighbours_logs_drawings_annotations_and_comments_change_nothing(tmp_path: Path, changed: dict) -> None:
    before = program(tmp_path / "before").code(["room.stage:run"])
    assert program(tmp_path / "after", **changed).code(["room.stage:run"]) == before


def test_a_root_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"pipeline\.stages\.prepare:prepair"):
        code_of(["pipeline.stages.prepare:prepair"])


@pytest.mark.parametrize("has_face", [True, False])
def test_code_outside_the_repository_is_followed_in_its_own_package(tmp_path: Path, monkeypatch, has_face) -> None:
    (tmp_path / "my_package").mkdir()
    if has_face:
        (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "noise.py").write_text("SIGMA = 2\n")
    (tmp_path / "my_package" / "adapter.py").write_text(
        "from common.seeds import derive_seed\nfrom my_package.noise import SIGMA\n\n\nclass Adapter:\n"
        "    def train(self):\n        return SIGMA, derive_seed(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code = code_of(["my_package.adapter:Adapter"])
    assert {"my_package.adapter:Adapter", "my_package.noise:SIGMA", "common.seeds:derive_seed"} <= set(code)


def test_changes_are_named_for_a_person() -> None:
    before, now = {"a:x": "1", "a:y": "1", "a:z": "1"}, {"a:x": "2", "a:y": "1", "a:w": "1"}
    assert describe_changes(before, now) == "a:x changed, a:w is new, a:z is gone"
    assert describe_changes({}, {f"a:{i}": "1" for i in range(9)}).endswith("a:2 is new, and 6 more")
    assert describe_changes(now, dict(now)) == ""


def rewritten_repository(folder: Path, rewrite: Callable[[ast.Module, str], object]) -> CodeBase:
    """The rooms with every file parsed, changed by ``rewrite`` and written anew: no comment, no formatting is left."""
    for room in {path.parent for path in REPOSITORY.glob("*/*.py")} - {REPOSITORY / "tests"}:
        shutil.copytree(room, folder / room.name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (folder / room.name).rglob("*.py"):
            tree = ast.parse(path.read_text())
            rewrite(tree, path.relative_to(folder).with_suffix("").as_posix().replace("/", "."))
            path.write_text(ast.unparse(tree))
    return CodeBase(folder)


def other_docstrings(tree: ast.Module, module: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value = ast.Constant("Other words.")


def test_other_comments_docstrings_and_formatting_in_every_file_change_no_stage(tmp_path: Path) -> None:
    base, other = CodeBase(REPOSITORY), rewritten_repository(tmp_path, other_docstrings)
    for kind, root in ROOTS.items():
        assert base.code([root]) == other.code([root]), kind


def test_another_value_of_every_constant_changes_just_the_stages_that_read_it(tmp_path: Path) -> None:
    """All of the repository's constants at once; of each stage the constants that it reads change, and nothing else."""
    constants: set[str] = set()

    def other_values(tree: ast.Module, module: str) -> None:
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = node.value.value if isinstance(node.value, ast.Constant) else None
                if isinstance(value, (int, float, str)) and not isinstance(value, bool):
                    node.value = ast.Constant(value + "x" if isinstance(value, str) else value + 1)
                    constants.add(f"{module}:{node.targets[0].id}")

    base, other = CodeBase(REPOSITORY), rewritten_repository(tmp_path, other_values)
    read: set[str] = set()
    for kind, root in ROOTS.items():
        before, after = base.code([root]), other.code([root])
        changed = {name for name in before if before[name] != after.get(name)}
        assert changed == constants & before.keys(), kind
        read |= changed
    assert len(read) > 100


def test_the_number_of_samples_marks_sampling_and_nothing_else(tmp_path: Path) -> None:
    """The fault that was found: ``sample`` read a constant that its hand-kept list of code left out."""

    def other_number(tree: ast.Module, module: str) -> None:
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "IMAGES_PER_TRAINING_IMAGE":
                node.value = ast.Constant(11)

    base, other = CodeBase(REPOSITORY), rewritten_repository(tmp_path, other_number)
    assert {kind for kind, root in ROOTS.items() if base.code([root]) != other.code([root])} == {"sample"}
