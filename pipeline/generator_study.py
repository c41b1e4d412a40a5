"""The old name of the command ``python -m studies.generator_study``; it goes with the next release."""

from common.moved import run_moved

if __name__ == "__main__":
    run_moved(__spec__.name, "studies.generator_study")
