"""One tiny experiment, run once a session as a user would run it, and what tests need to look at it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

os.environ.setdefault("OMP_NUM_THREADS", "1")

ON_RAY = ("test_federated_experiment", "test_ray")
LONGEST = (*ON_RAY, "test_experiment")  # minutes each


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
    """Of the workers of ``-n`` one runs a whole file, as its tests share fixtures, and one all that start Ray."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            stem = Path(nodeid.split("::")[0]).stem
            return "ray" if stem in ON_RAY else stem

    return ByFile(config, log)


TINY = (
    "--config-name=demo",
    "general.exp_name=tiny",
    "cluster=inline",
    "memorization=percentile",
    "data.phantom.size_px=32",
    "data.phantom.n_patients=6",
    "data.phantom.images_per_patient=[1,1]",
    "plan.base_features=4",
    "train.gan.kimg=0.4",
    "train.nnunet_epochs=3",
    "train.nnunet_iterations=4",
    "train.nnunet_val_iterations=1",
    "generate.n_images=40",
    "gates.enforce=false",  # of so few patients nothing can be told
    "gates.n_planted_copies=0",  # which the features' rule would mostly miss; tests/test_site_planted.py plants them
)
SIZES = {  # of a generator, by the override that names it
    "generator=stylegan2_small": ("channel_base=256", "channel_max=8", "z_dim=16", "w_dim=16"),
    "generator=ddpm": ("channels=[8,16]", "n_res_blocks=1", "n_evaluations=4"),
}


def tiny(*overrides: str) -> tuple[str, ...]:
    """The tiny experiment, with the sizes of the generator that ``overrides`` name, or else of the demo's."""
    named = next((override for override in overrides if override in SIZES), "generator=stylegan2_small")
    return (*TINY, *(f"generator.settings.{size}" for size in SIZES[named]))


def run_command(*overrides: str, cwd: Path, script: str = "run_nnunet.py") -> list[str]:
    """The command line of the tiny experiment with its runs and data under ``cwd``."""
    folders = (f"path.logs={cwd / 'runs'}", f"path.data={cwd / 'data'}")
    return [sys.executable, str(REPOSITORY / script), *tiny(*overrides), *folders, *overrides]


def run_tiny(*overrides: str, cwd: Path, script: str = "run_nnunet.py") -> subprocess.CompletedProcess[str]:
    """Run the tiny experiment to its end, whatever that is."""
    command = run_command(*overrides, cwd=cwd, script=script)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def manifests(run: Path) -> dict[str, dict]:
    """Every stage's manifest, by its path in the run."""
    inside = [path for path in run.glob("fold_*/**/manifest.json") if path.parent.parent.name != "share"]
    paths = [*inside, *run.glob("fold_*/share/*.stage.json"), *run.glob("fold_*/check/*/*.stage.json")]
    return {str(path.relative_to(run)): json.loads(path.read_text()) for path in paths}


def deterministic(manifest: dict) -> dict:
    """A manifest without the part that says when and where."""
    return {key: value for key, value in manifest.items() if key != "run"}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The finished tiny experiment: ``runs/tiny``."""
    cwd = tmp_path_factory.mktemp("tiny")
    ended = run_tiny(cwd=cwd)
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
