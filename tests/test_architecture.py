"""The import rules and the style bar of docs/architecture.md, by AST."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.rooms import LEVELS

ONLY_IN = {  # package -> where it may be imported
    "ray": ("engine/",),
    "nnunetv2": ("nnunetv2_mod/",),
    "hydra": ("pipeline/entry.py",),
    "omegaconf": ("pipeline/entry.py",),
    "pickle": (),
    "dill": (),
    "cloudpickle": (),
    "joblib": (),
    "shelve": (),
}
OWN_CHECKPOINTS = "nnunetv2_mod/training.py"  # nnU-Net's format; the file it reads was written beside it
VAGUE_NAMES = ("util", "utils", "helper", "helpers", "misc", "manager")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

PATHS = sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("run_*.py"))
PATHS += sorted(
    path.relative_to(REPOSITORY).as_posix() for room in LEVELS for path in REPOSITORY.glob(f"{room}/**/*.py")
)


def room_of(path: str) -> str:
    return path.split("/")[0] if "/" in path else "entry"


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names, imports inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"relative import of {node.module}" if node.level else str(node.module)


def import_violations(path: str, tree: ast.AST) -> list[str]:
    found = []
    for module in imported_modules(tree):
        top = module.split(".")[0]
        allowed = ONLY_IN.get(top)
        if allowed is not None and not path.startswith(allowed):
            found.append(f"{path} imports {module}")
        if top in LEVELS and top != room_of(path) and LEVELS[top] >= LEVELS[room_of(path)]:
            found.append(f"{path} imports {module}, which is not below it")
        if top.startswith(("run_", "relative import", "tests")):
            found.append(f"{path}: {module}")
    return found


def imported_files(path: str, tree: ast.AST) -> set[str]:
    """Files of the product that a file imports when it runs, inside functions too; not under TYPE_CHECKING."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            base = name.replace(".", "/")
            found |= {file for file in (f"{base}.py", f"{base}/__init__.py") if file in PATHS}
    return found - {path}


def circles(imports: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Groups of files that import each other, directly or through others (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in imports.get(node, ()):
            if other not in number:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            members = stack[stack.index(node) :]
            del stack[-len(members) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in imports:
        if node not in number:
            visit(node)
    return found


def call_violations(path: str, tree: ast.AST) -> list[str]:
    """Printing, and reading or writing what can carry code."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        unsafe_load = call == "torch.load" and keywords.get("weights_only") != "True" and path != OWN_CHECKPOINTS
        pickled = call == "torch.save" or keywords.get("allow_pickle", "False") != "False"
        if call == "print" or unsafe_load or pickled:
            found.append(f"{path}:{node.lineno} {call}")
    return found


def public_definitions(tree: ast.Module) -> Iterator[ast.AST]:
    """Module-level functions and classes and their methods, without those whose name starts with ``_``."""
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            inner = node.body if isinstance(node, ast.ClassDef) else []
            yield from (item for item in inner if isinstance(item, FUNCTIONS) and not item.name.startswith("_"))


def style_violations(path: str, source: str) -> list[str]:
    tree, found = ast.parse(source), []
    if Path(path).stem in VAGUE_NAMES:
        found.append(f"{path}: a name that says nothing")
    if source.count("\n") > MAX_FILE_LINES:
        found.append(f"{path} has {source.count(chr(10))} lines")
    if not ast.get_docstring(tree):
        found.append(f"{path} has no docstring")
    found += [
        f"{path}: {node.name} has no docstring" for node in public_definitions(tree) if not ast.get_docstring(node)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        n_lines = (node.end_lineno or 0) - node.lineno + 1
        if n_lines > MAX_FUNCTION_LINES:
            found.append(f"{path}: {node.name} has {n_lines} lines")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        untyped = [a.arg for a in arguments if a and a.annotation is None and a.arg not in ("self", "cls")]
        if untyped or node.returns is None:
            found.append(f"{path}: {node.name} is not typed ({', '.join(untyped) or 'return'})")
    return found


def test_the_rooms_are_all_there():
    """An empty glob would let every other test of this file pass."""
    assert {room_of(path) for path in PATHS} == set(LEVELS)


@pytest.mark.parametrize("path", PATHS)
def test_imports_point_down_and_stay_in_their_room(path):
    assert import_violations(path, ast.parse((REPOSITORY / path).read_text())) == []


def test_no_files_and_no_rooms_import_each_other_in_a_circle():
    """Also through several files, and through imports inside functions."""
    imports = {path: imported_files(path, ast.parse((REPOSITORY / path).read_text())) for path in PATHS}
    assert circles(imports) == []
    rooms: dict[str, set[str]] = {}
    for path, others in imports.items():
        rooms.setdefault(room_of(path), set()).update({room_of(other) for other in others} - {room_of(path)})
    assert circles(rooms) == []


def test_a_circle_is_seen():
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": ["e"], "e": []}) == [["a", "b", "c"]]
    guarded = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gan.model\ndef f():\n    import gan.train"
    )
    assert imported_files("gan/x.py", ast.parse(guarded)) == {"gan/train.py"}


def test_tests_are_short_and_import_no_other_test():
    """What several tests share is in tests/support/."""
    wrong = []
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        name, source = path.relative_to(REPOSITORY).as_posix(), path.read_text()
        if source.count("\n") > MAX_FILE_LINES:
            wrong.append(f"{name} has {source.count(chr(10))} lines")
        of_tests = re.findall(r"^\s*(?:from|import) (\S*\btest_\w+)", source, re.MULTILINE)
        wrong += [f"{name} imports {module}" for module in of_tests if module != path.stem]
    assert wrong == []


@pytest.mark.parametrize("path", PATHS)
def test_nothing_prints_or_pickles(path):
    """A pickle that crosses a border runs code at the receiver; print debugging was the original's (D44)."""
    assert call_violations(path, ast.parse((REPOSITORY / path).read_text())) == []


@pytest.mark.parametrize("path", PATHS)
def test_style_bar(path):
    assert style_violations(path, (REPOSITORY / path).read_text()) == []


def test_every_folder_with_code_is_a_known_room():
    """A new folder gets its place in LEVELS and in docs/architecture.md first."""
    folders = {path.parent.name for path in REPOSITORY.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert folders - {"tests", "config"} == set(LEVELS) - {"entry"}
    described = (REPOSITORY / "docs" / "architecture.md").read_text()
    assert [room for room in folders - {"tests"} if f"    {room}/" not in described] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gan/model.py", "def f():\n    import sharing.package"),
        ("common/files.py", "from dataset import folds"),
        ("sharing/package.py", "from pipeline.launch import launch"),
        ("evaluation/report/page.py", "def f():\n    from hydra import compose"),
        ("features/index.py", "import ray"),
        ("gan/train.py", "from nnunetv2.training import x"),
        ("engine/store.py", "import pickle"),
        ("engine/store.py", "from omegaconf import OmegaConf"),
        ("engine/store.py", "from . import graph"),
    ],
)
def test_forbidden_imports_are_seen(path, source):
    """The rules themselves, on planted violations (also inside functions)."""
    assert len(import_violations(path, ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save({}, p)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_forbidden_calls_are_seen(source):
    assert len(call_violations("gan/train.py", ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gan/utils.py", '"""Doc."""'),
        ("gan/a.py", "x = 1"),
        ("gan/a.py", '"""Doc."""\nclass A:\n    def b(self) -> None:\n        pass\n    """no docstring"""'),
        ("gan/a.py", '"""Doc."""\ndef _a(x) -> int:\n    return x'),
        ("gan/a.py", '"""Doc."""\ndef _a(x: int):\n    return x'),
        ("gan/a.py", '"""Doc."""\ndef _a() -> None:\n' + "    x = 1\n" * 80),
        ("gan/a.py", '"""Doc."""\n' + "x = 1\n" * 450),
    ],
)
def test_style_violations_are_seen(path, source):
    assert style_violations(path, source)


def test_a_setting_is_refused_before_pytorch_and_nnunet_are_loaded():
    """They take many seconds to import; a dry run, a typo on the command line and every Ray driver wait for them."""
    loaded = "print([name for name in ('torch', 'nnunetv2', 'ray') if name in sys.modules])"
    code = f"import sys, pipeline.entry, pipeline.launch; {loaded}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_what_nnunet_offers_here_is_what_its_room_says():
    """The functions load on first use; each name leads to its function and none to a module of that name."""
    import nnunetv2_mod

    assert set(nnunetv2_mod.__all__) == {name for name in dir(nnunetv2_mod) if not name.startswith("_")}
    assert [name for name in nnunetv2_mod.__all__ if not callable(getattr(nnunetv2_mod, name))] == []
