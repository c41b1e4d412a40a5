"""Commands that moved to another room keep their old name for one release."""

from __future__ import annotations

import runpy
import sys


def run_moved(old: str, new: str) -> None:
    """Name the new command on standard error, then run it with the arguments of this one."""
    sys.stderr.write(f"`python -m {old}` is now `python -m {new}`; the old name goes with the next release.\n")
    runpy.run_module(new, run_name="__main__", alter_sys=True)
