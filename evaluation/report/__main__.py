"""Write the report of a run again.

    python -m evaluation.report runs/demo

One HTML page over the run's outer folds, from what its stages left.
"""

import argparse
import sys
from pathlib import Path

from common.command import command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="runs/<exp_name>")
    parser.add_argument("--folds", type=int, nargs="+", help="outer folds to include (default: all found)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the run's)")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Write the report and print its path."""
    from evaluation.report.page import rebuild_report

    sys.stdout.write(f"{rebuild_report(chosen.run, chosen.folds, chosen.out)}\n")


if __name__ == "__main__":
    sys.exit(main())
