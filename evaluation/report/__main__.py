"""``python -m evaluation.report``: one report over the folds of a run."""

import sys

from evaluation.report.page import main

if __name__ == "__main__":
    sys.exit(main())
