"""The old name of the command ``python -m studies.scheduler_benchmark``; it goes with the next release."""

from common.moved import run_moved

if __name__ == "__main__":
    run_moved(__spec__.name, "studies.scheduler_benchmark")
