"""One tiny experiment, run once a session as a user would run it, and what tests need to look at it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from support.tiny_experiment import run_tiny

os.environ.setdefault("OMP_NUM_THREADS", "1")

ON_RAY = ("test_federated_experiment", "test_ray")
ON_THE_TINY_RUN = ("test_experiment", "test_stage_code")
LONGEST = (*ON_RAY, *ON_THE_TINY_RUN)  # minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what lasts longest."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def _logging_stays_on() -> Iterator[None]:
    """A call that silences the whole process would also silence the tests after it, and its user's program."""
    yield
    assert logging.root.manager.disable < logging.WARNING, "left logging disabled"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Of the workers of ``-n`` one runs a whole file, as its tests share fixtures, one all that start Ray, and one all
    that work in the tiny run."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            stem = Path(nodeid.split("::")[0]).stem
            return "ray" if stem in ON_RAY else "tiny" if stem in ON_THE_TINY_RUN else stem

    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The finished tiny experiment: ``runs/tiny``; ``executed.json`` beside ``runs`` says which code each stage ran.

    The workers of ``-n`` share one run: whoever comes first makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    cwd = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with FileLock(f"{cwd}.lock"):
        if not (cwd / "executed.json").is_file():
            cwd.mkdir(exist_ok=True)
            ended = run_tiny(cwd=cwd, traced_to=cwd / "executed.json")
            assert ended.returncode == 0, ended.stderr[-4000:]
    return cwd / "runs" / "tiny"


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[str]:
    """A Ray cluster of two nodes on this machine, one carrying ``site:A``, the other ``site:B``; yields its address."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    cluster = Cluster()
    for site in "AB":
        cluster.add_node(num_cpus=1, num_gpus=0, resources={f"site:{site}": 1}, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()
