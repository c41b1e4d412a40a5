"""Errors a user can act on: what is wrong, where, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.exit_codes import ExitCode

MAX_LISTED = 20  # of problems that are raised together


class InputError(ValueError):
    """Bad input, found before any training: names the place, the value and the way out.

    Args:
        problem: what is wrong, with the offending value in it.
        where: the file, table row or configuration key.
        fix: what the user can do.
    """

    exit_code = ExitCode.BAD_INPUT  # of a command that ends with this error

    def __init__(self, problem: str, *, where: str | Path, fix: str) -> None:
        super().__init__(problem, where, fix)
        self.problem, self.where, self.fix = problem, str(where), fix

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}\n  way out: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments survive the trip from a Ray worker to the driver
        return _rebuild_input_error, (self.problem, self.where, self.fix)


class StoppedError(Exception):
    """The work was stopped from outside, such as by the end of its Ray cluster; the same command goes on from here."""


def _rebuild_input_error(problem: str, where: str, fix: str) -> InputError:
    return InputError(problem, where=where, fix=fix)


def raise_all(problems: Sequence[InputError]) -> None:
    """Raise the first problem, if there is one, with the others listed below it.

    Raises:
        InputError: there is one.
    """
    if not problems:
        return
    first, *others = problems
    listed = [f"\n  - {error.where}: {error.problem}" for error in others[:MAX_LISTED]]
    if len(others) > MAX_LISTED:
        listed.append(f"\n  - and {len(others) - MAX_LISTED} more")
    more = f"\n  and {len(others)} more:{''.join(listed)}" if others else ""
    raise InputError(f"{first.problem}{more}", where=first.where, fix=first.fix)
