"""Which code a stage depends on: every definition that its function can reach, read without its wording.

A definition is a function, a class or a constant of a module. From a stage's function the walk goes on through every
name that a definition uses, also in other files, imports inside functions included. Where the code chooses as it runs,
the walk takes too much rather than too little:

- a module that is used as a value (``getattr(module, name)``) counts whole, as does ``import_module("its.name")``;
- a class counts whole, with all its methods;
- a text of the form ``"package.module:name"`` counts as a use of that definition.

A definition is compared by its syntax tree. What does not change a result is not read: comments, formatting,
docstrings, type annotations of functions, calls of the module's logger, and functions that only draw
(``common.drawing``). The code of other people's packages is not read; the manifests say their versions.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent
WHOLE = "*"
EFFECTS = "<import>"  # what a module does when it is imported, beside its definitions
DIGEST_DIGITS = 16
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+:[A-Za-z_]\w*")
LOG_CALLS = tuple(f"log.{level}" for level in ("debug", "info", "warning", "error", "exception"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NOT_READ: Mapping[type, tuple[str, ...]] = {**dict.fromkeys(FUNCTIONS, ("returns",)), ast.arg: ("annotation",)}


@dataclass(frozen=True)
class Definition:
    """``name`` of ``module``; ``*`` is the whole module."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


@dataclass
class _Module:
    """A file, read once: what it binds at its top level, and how."""

    name: str
    package: str  # from which its relative imports count
    definitions: dict[str, list[ast.AST]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # local name -> module, its attribute
    starred: list[str] = field(default_factory=list)  # modules of ``from x import *``


class CodeBase:
    """The Python files below ``root``, and those of the packages named in ``also`` (a user's own generator).

    Files are read when they are reached, once for each instance.
    """

    def __init__(self, root: Path = REPOSITORY, also: Sequence[str] = ()) -> None:
        self._root = root
        self._also = frozenset(also)
        self._module = functools.cache(self._read_module)
        self._reading = functools.cache(self._read_definition)
        self.uses = functools.cache(self._uses)  # of a definition: those it names, and what its module does on import

    def reached(self, roots: Sequence[str]) -> frozenset[Definition]:
        """Every definition that ``roots`` (``module:name``, or ``module`` for the whole file) lead to.

        Raises:
            InputError: a root is not there.
        """
        waiting = [self._root_definition(root) for root in roots]
        found: set[Definition] = set(waiting)
        while waiting:
            for used in self.uses(waiting.pop()):
                if used not in found:
                    found.add(used)
                    waiting.append(used)
        return frozenset(found)

    def code(self, roots: Sequence[str]) -> dict[str, str]:
        """The reached definitions with a digest of each, sorted by name."""
        with _without_garbage_collection():
            reached = (each for each in self.reached(roots) if self._nodes(each))
            return {str(each): self._reading(each).digest for each in sorted(reached, key=str)}

    def _uses(self, definition: Definition) -> tuple[Definition, ...]:
        module = self._module(definition.module)
        if module is None:
            return ()
        if definition.name == WHOLE:
            return tuple(Definition(module.name, name) for name in module.definitions)
        return tuple(self._used_in(module, definition))

    def _used_in(self, module: _Module, definition: Definition) -> Iterator[Definition]:
        used = self._reading(definition)
        own = _Module(module.name, module.package)
        for statement in used.imports:
            _bind_import(own, statement)
        # a function's own imports hide what the file binds
        defined = {name: nodes for name, nodes in module.definitions.items() if name not in own.imports}
        scope = _Module(module.name, module.package, defined, module.imports | own.imports, module.starred)
        for name in sorted(used.names):
            yield from self._resolve(scope, name)
        yield from (Definition(name, WHOLE) for name in sorted(used.loaded) if self._module(name) is not None)
        if EFFECTS in module.definitions:
            yield Definition(module.name, EFFECTS)

    def _root_definition(self, root: str) -> Definition:
        module, _, name = root.partition(":")
        found = self._module(module)
        if found is None or (name and name not in found.definitions):
            raise InputError(f"{root!r} is not there", where=root, fix="name a module and a definition in it")
        return Definition(module, name or WHOLE)

    def _read_definition(self, definition: Definition) -> _Reading:
        return _Reading(self._nodes(definition))

    def _nodes(self, definition: Definition) -> list[ast.AST]:
        module = self._module(definition.module)
        return module.definitions.get(definition.name, []) if module else []

    def _resolve(self, module: _Module, dotted: str) -> Iterator[Definition]:
        """What ``a`` or ``a.b.c`` means in this module, as far as it is code of ours."""
        first, *rest = dotted.split(".")
        if ":" in dotted:  # a text that names a definition
            owner, _, name = dotted.partition(":")
            if (other := self._module(owner)) is not None and name in other.definitions:
                yield Definition(owner, name)
            return
        if first in module.definitions:
            yield Definition(module.name, first)
        elif first in module.imports:
            owner, attribute = module.imports[first]
            yield from self._attribute(owner, [*([attribute] if attribute else []), *rest])
        else:
            for owner in module.starred:
                if (other := self._module(owner)) is not None and first in other.definitions:
                    yield Definition(owner, first)

    def _attribute(self, owner: str, path: list[str]) -> Iterator[Definition]:
        """``owner.path``: a definition of the module, of one of its submodules, or the whole module."""
        module = self._module(owner)
        if module is None:
            return
        if not path:
            yield Definition(owner, WHOLE)
        elif path[0] in module.definitions or path[0] in module.imports:
            yield from self._resolve(module, ".".join(path))
        elif self._module(f"{owner}.{path[0]}") is not None:
            yield from self._attribute(f"{owner}.{path[0]}", path[1:])
        else:
            yield Definition(owner, WHOLE)

    def _read_module(self, name: str) -> _Module | None:
        paths = self._files(name)
        return _read(name, paths) if paths else None

    def _files(self, name: str) -> list[Path]:
        """The module's file, and beside a package's face the stub that says what it loads on first use."""
        top, *rest = name.split(".")
        base = self._root.joinpath(top, *rest)
        if top in self._also and not base.exists():
            spec = importlib.util.find_spec(top)
            if spec is not None and spec.submodule_search_locations:
                base = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
            elif spec is not None and spec.origin:
                base = Path(spec.origin).with_suffix("")
        found = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()][:1]
        return [*found, *(path for path in (base / "__init__.pyi",) if path.is_file())]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Syntax trees are many small objects and all stay: looking for garbage among them is a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_code_base = functools.cache(CodeBase)  # the code as it is on disk now; read once in a process


def code_of(roots: Sequence[str]) -> dict[str, str]:
    """Digests of what ``roots`` reach in this program and, for roots outside it, in their own package."""
    outside = {root.split(":")[0].split(".")[0] for root in roots}
    return _code_base(REPOSITORY, tuple(sorted(top for top in outside if not (REPOSITORY / top).is_dir()))).code(roots)


def describe_changes(before: Mapping[str, str], now: Mapping[str, str], most: int = 3) -> str:
    """Which definitions differ, for a person: ``gan.train_step:r1_penalty changed, and 4 more``."""
    every = [f"{name} changed" for name in now if name in before and before[name] != now[name]]
    every += [f"{name} is new" for name in now if name not in before]
    every += [f"{name} is gone" for name in before if name not in now]
    more = [f"and {len(every) - most} more"] if len(every) > most else []
    return ", ".join([*every[:most], *more])


@functools.cache
def files_digest(root: Path = REPOSITORY) -> str:
    """SHA-256 over all of the program's files: whether two machines run the same program."""
    digest = hashlib.sha256()
    outside = ("tests", ".")
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/**/*.py"))
    for name in (name for name in names if not name.startswith(outside)):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def _read(name: str, paths: Sequence[Path]) -> _Module:
    module = _Module(name, name if paths[0].name.startswith("__init__") else name.rpartition(".")[0])
    for path in paths:
        for statement in ast.parse(path.read_bytes(), str(path)).body:
            _bind(module, statement)
    return module


def _bind(module: _Module, statement: ast.stmt) -> None:
    """Note what one top-level statement binds; one that binds nothing is what the import does."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        _bind_import(module, statement)
    elif isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        if not _only_draws(statement):
            module.definitions.setdefault(statement.name, []).append(statement)
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            for name, value in _bound(target, statement.value):
                module.definitions.setdefault(name, []).append(value)
    elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
        pass  # not there when the program runs
    elif isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
        pass  # the command line of a module, not its import
    elif not _is_text(statement):
        names = set()
        for node in ast.walk(statement):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                _bind_import(module, node)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
        for name in names or {EFFECTS}:
            module.definitions.setdefault(name, []).append(statement)


def _bind_import(module: _Module, statement: ast.Import | ast.ImportFrom) -> None:
    for alias in statement.names:
        if isinstance(statement, ast.Import):  # ``import a.b`` binds ``a``
            source = alias.name if alias.asname else alias.name.split(".")[0]
            module.imports[alias.asname or source] = (source, None)
            continue
        parents = module.package.split(".")
        above = parents[: len(parents) - statement.level + 1] if statement.level else []
        source = ".".join([*above, *([statement.module] if statement.module else [])])
        if alias.name == "*":
            module.starred.append(source)
        else:
            module.imports[alias.asname or alias.name] = (source, alias.name)


def _bound(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of an assignment; ``A, B = 1, 2`` binds each name to its own value."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)):
        values = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts) else None
        for i, one in enumerate(target.elts):
            yield from _bound(one, values[i] if values else value)
    else:  # ``TABLE["key"] = value`` changes what TABLE is
        yield from ((node.id, value) for node in ast.walk(target) if isinstance(node, ast.Name))


class _Reading:
    """What definitions mean, as a digest, and what they use: dotted names, texts that name a definition, own imports.

    The digest is the same for two pieces of code that differ in what is not read alone. Parts of a node that are absent
    are left out, since versions of Python differ in them.
    """

    def __init__(self, nodes: Sequence[ast.AST]) -> None:
        self.names: set[str] = set()
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.loaded: set[str] = set()  # modules that are loaded by their name
        self._parts: list[str] = []
        for node in nodes:
            self._read(node)
        self.digest = hashlib.sha256(" ".join(self._parts).encode()).hexdigest()[:DIGEST_DIGITS]

    def _read(self, item: object) -> None:
        if isinstance(item, list):
            self._parts.append("[")
            for each in item:
                if not (isinstance(each, ast.stmt) and _changes_nothing(each)):
                    self._read(each)
            self._parts.append("]")
        elif isinstance(item, ast.AST):
            self._read_node(item)
        else:
            self._parts.append(repr(item))

    def _read_node(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Name, ast.Attribute)) and (dotted := _dotted(node)):
            self.names.add(dotted)
            self._parts.append(dotted)
            return
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and DOTTED.fullmatch(node.value):
                self.names.add(node.value)
            self._parts.append(repr(node.value))
            return
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imports.append(node)
        elif isinstance(node, ast.Call) and _dotted(node.func).endswith("import_module"):
            self.loaded |= {str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant)}
        kind = type(node)
        self._parts.append(f"({kind.__name__}")
        for name in _fields_of(kind):  # type: ignore[arg-type]
            value = getattr(node, name, None)
            if value is not None and value != []:
                self._parts.append(name)
                self._read(value)
        self._parts.append(")")


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` for such an expression, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


@functools.cache
def _fields_of(kind: type[ast.AST]) -> tuple[str, ...]:
    left_out = (*NOT_READ.get(kind, ()), "ctx", "kind", "type_comment")
    return tuple(name for name in kind._fields if name not in left_out)


def _changes_nothing(statement: ast.stmt) -> bool:
    return _is_text(statement) or _is_log_call(statement) or _only_draws(statement)


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, or a text between statements."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_log_call(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and _dotted(statement.value.func) in LOG_CALLS
        and not any(isinstance(node, ast.NamedExpr) for node in ast.walk(statement))
    )


def _only_draws(statement: ast.stmt) -> bool:
    """Marked with ``common.drawing.drawing``."""
    return isinstance(statement, FUNCTIONS) and any(_dotted(each) == "drawing" for each in statement.decorator_list)
