"""The main experiment over growing unions of sites: what does each further contributor bring?

``python run_scaling.py --config-name=<experiment> [key=value ...]``; experiments stand in ``config/scaling/``.
The same command resumes; ``dry_run=true`` shows what would run.
"""

from pipeline.entry import start
from pipeline.experiments import SCALING

if __name__ == "__main__":
    start(SCALING)
