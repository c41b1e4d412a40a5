"""FedAvg, FedProx, FedBN and DSL beside local and pooled training.

``python run_federated.py --config-name=<experiment> [key=value ...]``; experiments stand in ``config/federated/``.
The same command resumes; ``dry_run=true`` shows what would run.
"""

from pipeline.entry import start
from pipeline.experiments import FEDERATED

if __name__ == "__main__":
    start(FEDERATED)
