"""How a command ended: one table for every command of this repository, explained in docs/exit-codes.md."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a shell script reads as ``$?``; docs/exit-codes.md says which command gives which."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    REFUSED = 3
    WAITING = 4
    STOPPED = 5
    PARTIAL = 6


def code_of_sweep(codes: Iterable[int]) -> ExitCode:
    """The exit code of several jobs: partial where some ended with results and others did not, else the worst."""
    ended = {ExitCode(code) for code in codes}
    with_results = ended & {ExitCode.DONE, ExitCode.REFUSED}
    if with_results and ended - with_results:
        return ExitCode.PARTIAL
    return max(ended, default=ExitCode.DONE)
