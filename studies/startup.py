"""What it costs to start each command: CPU seconds, and which slow packages it imports.

    python -m studies.startup --runs 5

Every module that can be run is asked for its ``--help``, and each experiment script for a dry run. Seconds are those
of the process (user and system), the median over the runs.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence

from common.command import command
from engine.dependencies import REPOSITORY

HEAVY = ("torch", "monai", "nnunetv2", "ray", "matplotlib", "pandas", "scipy", "sklearn")
OUTSIDE = ("tests", ".", "runs", "config")
RUNS_AS_COMMAND = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
OLD_NAME = re.compile(r"^from common\.moved import", re.MULTILINE)


def commands() -> list[str]:
    """Every module that can be run, and the experiments' scripts; old names of moved commands are left out."""
    found = []
    for path in sorted(REPOSITORY.glob("**/*.py")):
        name = path.relative_to(REPOSITORY).as_posix()
        if name.startswith(OUTSIDE) or "/." in name:
            continue
        text = path.read_text(encoding="utf-8")
        if RUNS_AS_COMMAND.search(text) and not OLD_NAME.search(text):
            module = name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
            found.append(module if "/" in name else name)
    return found


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=5, help="of each command")
    parser.add_argument("--only", default="", help="commands whose name holds this text (default: all)")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Measure and print a line a command, as soon as it is measured."""
    for name in (name for name in commands() if chosen.only in name):
        words = [name, "dry_run=true"] if name.endswith(".py") else ["-m", name, "--help"]
        seconds = [cpu_seconds(words) for _ in range(chosen.runs)]
        imported = ", ".join(heavy_imports(words)) or "none"
        sys.stdout.write(f"{statistics.median(seconds):6.2f} s  {' '.join(words):50s} {imported}\n")
        sys.stdout.flush()


def cpu_seconds(words: Sequence[str]) -> float:
    """User and system time of one process."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def heavy_imports(words: Sequence[str]) -> list[str]:
    """Those of ``HEAVY`` that the command loads, as ``python -X importtime`` lists them."""
    ended = subprocess.run([sys.executable, "-X", "importtime", *words], cwd=REPOSITORY, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    return [name for name in HEAVY if name in loaded]


if __name__ == "__main__":
    sys.exit(main())
