"""How a command starts and ends: arguments, help, log, messages on bad input, and its exit code.

    @command(_add_arguments)
    def main(chosen: argparse.Namespace) -> None: ...

    if __name__ == "__main__":
        sys.exit(main())

A module with a command imports what is slow to import (PyTorch and what needs it) inside its functions, so that
``--help`` and a mistyped argument are answered at once; tests/common/test_commands.py holds it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from common.errors import InputError, StoppedError
from common.exit_codes import ExitCode


class Main(Protocol):
    """A command as ``sys.exit`` and tests call it."""

    def __call__(self, arguments: Sequence[str] | None = None) -> ExitCode:
        """Run with these arguments, by default the process's own; returns the exit code."""


def command(
    add_arguments: Callable[[argparse.ArgumentParser], None],
) -> Callable[[Callable[[argparse.Namespace], ExitCode | None]], Main]:
    """Make a function of parsed arguments the ``main`` of its module, whose docstring becomes the help.

    The function returns nothing where all is done, raises ``InputError`` on bad input, or returns another code.
    """

    def decorate(run: Callable[[argparse.Namespace], ExitCode | None]) -> Main:
        def main(arguments: Sequence[str] | None = None) -> ExitCode:
            module = sys.modules[run.__module__]
            name = module.__spec__.name if module.__spec__ else run.__module__  # "__main__" is no name
            prog = f"python -m {name.removesuffix('.__main__')}"
            parser = argparse.ArgumentParser(prog, description=module.__doc__, formatter_class=_Help)
            add_arguments(parser)
            chosen = parser.parse_intermixed_args(arguments)
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
            return exit_code_of(lambda: run(chosen))

        return main

    return decorate


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Paragraphs stay as they are written; an option that has a default value shows it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_value = action.default is not None and not isinstance(action.default, bool)
        return super()._get_help_string(action) if has_value and "default" not in str(action.help) else action.help


def exit_code_of(work: Callable[[], int | None]) -> ExitCode:
    """Do the work; a stop and bad input become a message on stderr and an exit code. Other errors are raised."""
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # it would tell its number of threads at every start
    try:
        with _sigterm_as_interrupt():
            code = ExitCode(work() or ExitCode.DONE)
            sys.stdout.flush()
        return code
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except StoppedError as error:
        sys.stderr.write(f"{error}\n")
    except KeyboardInterrupt:
        sys.stderr.write("The command was stopped. What is finished stays; run it again to go on.\n")
    except BrokenPipeError:  # the reader of the output, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the process
    return ExitCode.STOPPED


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl-C, so that files are closed and workers ended; children keep their own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own_process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own_process:  # forked from here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except SystemExit as ended:  # Ray sets a handler of its own, which exits with the signal's number
        if ended.code == signal.SIGTERM:
            raise KeyboardInterrupt from ended
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
