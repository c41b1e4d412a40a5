"""Walk the code as a stage's data does: which functions the stage's context is handed to, in the order of the text.

An argument, a part of it, or what was computed from it is followed into every function of ours that takes it, each
function once. Where the code chooses as it runs (a protocol's method, a function in a table) the walk stops.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.dependencies import CodeBase, Definition

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Journey:
    """Functions in the order in which they were entered."""

    code: CodeBase
    entered: list[tuple[str, str]] = field(default_factory=list)  # module, function

    @property
    def files(self) -> list[str]:
        """The files, one entry for each stay."""
        modules = [module for module, _ in self.entered]
        return [module for i, module in enumerate(modules) if i == 0 or module != modules[i - 1]]

    def n_climbs(self, levels: dict[str, int]) -> int:
        """How often the walk goes on in a file of a higher room than the one it came from."""
        heights = [levels[module.split(".")[0]] for module in self.files]
        return sum(after > before for before, after in zip(heights, heights[1:], strict=False))

    def walk(self, module: str, function: ast.FunctionDef, handed: set[str], owner: str = "") -> None:
        """Enter ``function`` with the parameters ``handed`` that carry the data."""
        name = f"{owner}.{function.name}" if owner else function.name
        if (module, name) in self.entered:
            return
        self.entered.append((module, name))
        types = {a.arg: a.annotation for a in _parameters(function) if a.annotation is not None}
        carried = set(handed)
        for statement in function.body:
            for node in _in_order(statement):
                if isinstance(node, ast.Call):
                    self._call(module, node, carried, types, owner)
                elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    if _carries(node.value, carried):
                        carried |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
                    is_plain = isinstance(node.value, ast.Call) and isinstance(targets[0], ast.Name)
                    if is_plain and (made := self._type_of_call(module, node.value, types)):
                        types[targets[0].id] = made
                elif isinstance(node, (ast.For, ast.comprehension)) and _carries(node.iter, carried):
                    carried |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}

    def _call(self, module: str, call: ast.Call, carried: set[str], types: dict, owner: str) -> None:
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        if not any(_carries(value, carried) for value in [*values, *([receiver] if receiver else [])]):
            return
        for found, node in self._callees(module, call.func, types, owner):
            names = [a.arg for a in _parameters(node)]
            is_method = "." in found.name
            given = dict(zip(names[is_method:], call.args, strict=False))
            given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            handed = {name for name, value in given.items() if _carries(value, carried)}
            if is_method and receiver is not None and _carries(receiver, carried):
                handed.add(names[0])
            self.walk(found.module, node, handed, found.name.rpartition(".")[0])

    def _callees(
        self, module: str, called: ast.expr, types: dict, owner: str
    ) -> Iterator[tuple[Definition, ast.FunctionDef]]:
        """The functions that a call enters: a function, a constructor, or a method of an object of a known class."""
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            if called.value.id in ("self", "cls") and owner:
                yield from self._method(Definition(module, owner), called.attr)
                return
            if called.value.id in types:
                for cls in self._resolve(module, types[called.value.id]):
                    yield from self._method(cls, called.attr)
                return
        for found in self._resolve(module, called):
            for node in self.code._nodes(found):
                if isinstance(node, FUNCTIONS):
                    yield found, node
                elif isinstance(node, ast.ClassDef):
                    yield from self._method(found, "__init__")

    def _method(self, cls: Definition, name: str) -> Iterator[tuple[Definition, ast.FunctionDef]]:
        for node in self.code._nodes(cls):
            for item in getattr(node, "body", []) if isinstance(node, ast.ClassDef) else []:
                if isinstance(item, FUNCTIONS) and item.name == name and not _is_protocol(node):
                    yield Definition(cls.module, f"{cls.name}.{name}"), item

    def _resolve(self, module: str, expression: ast.expr) -> Iterator[Definition]:
        text = expression.value if isinstance(expression, ast.Constant) else ast.unparse(expression)
        read = self.code._module(module)
        if read is not None and isinstance(text, str) and text.replace(".", "").isidentifier():
            yield from self.code._resolve(read, text)

    def _type_of_call(self, module: str, call: ast.Call, types: dict) -> ast.expr | None:
        for found in self._resolve(module, call.func):
            for node in self.code._nodes(found):
                if isinstance(node, ast.ClassDef):
                    return call.func
                if isinstance(node, FUNCTIONS) and node.returns is not None and found.module == module:
                    return node.returns
        return None


def journey_of(dotted: str, parameter: str = "context") -> Journey:
    """The walk of one parameter of ``module:function``."""
    module, _, name = dotted.partition(":")
    journey = Journey(CodeBase())
    (function,) = journey.code._nodes(Definition(module, name))
    journey.walk(module, function, {parameter})
    return journey


def _parameters(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _carries(expression: ast.expr, carried: set[str]) -> bool:
    return any(isinstance(node, ast.Name) and node.id in carried for node in ast.walk(expression))


def _in_order(statement: ast.stmt) -> Iterator[ast.AST]:
    """Arguments before the call, the value before its target."""
    for child in ast.iter_child_nodes(statement):
        yield from _in_order(child)
    yield statement


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).startswith("Protocol") for base in node.bases)
