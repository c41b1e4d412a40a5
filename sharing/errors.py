"""Why a package is refused: a line for each reason, with the file, the value and the way out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.exit_codes import ExitCode

ASK = "do not use the package; ask the site for one that its release wrote"
SEND_AGAIN = "transfer the package again; ask the site if that does not help"
SAME_RELEASE = "let both sites use the same release"

MAX_SHOWN_CHARS = 120  # of a value or name that a stranger chose
MAX_REASONS = 20  # enough to see what kind of package it is
_PLAIN = re.compile(r"[\w./-]{1,120}", re.ASCII)


def shown(value: object) -> str:
    """A stranger's value for a terminal: short, ASCII, on one line, without control characters."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def said(fault: tuple[str, object, str]) -> str:
    """A key, its value and what the value must be, in ASCII: a terminal may have no other letters."""
    key, value, wanted = fault
    return f"has {key} {shown(value)}; it must be {wanted}".encode("ascii", "backslashreplace").decode()


@dataclass(frozen=True)
class Reason:
    """One thing that is wrong with one file of a package."""

    file: str  # its name in the package; empty for the package itself
    problem: str
    fix: str = ASK

    def __str__(self) -> str:
        return f"{shown(self.file) if self.file else 'package'}: {self.problem}; way out: {self.fix}"


class RefusedFileError(ValueError):
    """What a check of one file found; ``PackageError`` names the file."""

    def __init__(self, problem: str, fix: str = ASK) -> None:
        super().__init__(problem)
        self.problem, self.fix = problem, fix


class PackageError(InputError):
    """The package breaks a rule of packages; it must not be merged."""

    exit_code = ExitCode.REFUSED

    def __init__(self, folder: Path, reasons: Sequence[Reason]) -> None:
        super().__init__(reasons[0].problem, where=folder / reasons[0].file, fix=reasons[0].fix)
        self.folder, self.reasons = folder, tuple(reasons[:MAX_REASONS])

    @classmethod
    def of(cls, folder: Path, file: str, problem: str, fix: str = ASK) -> PackageError:
        """With one reason; ``file`` is empty for the package itself."""
        return cls(folder, [Reason(file, problem, fix)])

    def __str__(self) -> str:
        return "\n".join(f"{self.folder}: {reason}" for reason in self.reasons)

    def __reduce__(self) -> tuple[object, ...]:
        return PackageError, (self.folder, self.reasons)
