"""The old name of the command ``python -m engine.scheduling.benchmark``; it goes with the next release."""

from common.moved import run_moved

if __name__ == "__main__":
    run_moved(__spec__.name, "engine.scheduling.benchmark")
