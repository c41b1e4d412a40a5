"""Run an experiment as ``run_nnunet.py`` does and note which of the repository's code each stage executed.

``python traced_run.py NOTES.json [arguments of run_nnunet.py]``; the stages must run in this process
(``cluster=inline``). An oracle for ``engine.dependencies``: it follows what runs, not what the text says.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

import common.drawing  # noqa: E402

ENGINE = str(REPOSITORY / "engine")
drawn: set[CodeType] = set()
executed: dict[str, set[CodeType]] = defaultdict(set)
stage_now = ""
depth_of_drawing: dict[int, int] = defaultdict(int)


def marks(function):
    drawn.add(function.__code__)
    return function


def profile(frame: FrameType, event: str, _: object) -> None:
    if not stage_now or event not in ("call", "return"):
        return
    code, thread = frame.f_code, threading.get_ident()
    # the engine shows progress and reads the context; what an import calls makes definitions, not results
    if code in drawn or code.co_filename.startswith(ENGINE) or code.co_name == "<module>":
        depth_of_drawing[thread] += 1 if event == "call" else -1
    elif event == "call" and not depth_of_drawing[thread]:
        executed[stage_now].add(code)


def described(code: CodeType) -> tuple[str, str, list[str]] | None:
    """Module, top-level definition and names read, if the code is the repository's own."""
    path = Path(code.co_filename)
    is_ours = path.is_relative_to(REPOSITORY) and ".venv" not in path.parts
    if not is_ours or code.co_qualname.startswith("<"):  # an import
        return None
    module = path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
    return module, code.co_qualname.split(".")[0], sorted(code.co_names)


def main() -> None:
    global stage_now
    notes, sys.argv = Path(sys.argv[1]), ["run_nnunet.py", *sys.argv[2:]]
    common.drawing.drawing = marks
    import engine.run_stage as run_stage

    find = run_stage.resolve_name

    def traced(dotted: str):
        function = find(dotted)

        def call(context) -> None:
            global stage_now
            stage_now = f"{context.stage.function} {' '.join(context.stage.code)}".strip()
            try:
                function(context)
            finally:
                stage_now = ""

        return call

    run_stage.resolve_name = traced
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        runpy.run_path(str(REPOSITORY / "run_nnunet.py"), run_name="__main__")
    finally:
        sys.setprofile(None)
        found = {roots: sorted(filter(None, map(described, codes))) for roots, codes in executed.items()}
        notes.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
