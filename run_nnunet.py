"""The main experiment: ``python run_nnunet.py --config-name=<experiment> [key=value ...]``.

Experiments stand in ``config/nnunet/``. The same command resumes; ``dry_run=true`` shows what would run.
"""

from pipeline.entry import start
from pipeline.experiments import NNUNET

if __name__ == "__main__":
    start(NNUNET)
