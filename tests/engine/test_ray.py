"""Stages on Ray: sites stay on their own nodes, dead workers are retried, what is not there is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_experiment import deterministic, manifests, run_command, run_tiny

from common.errors import InputError
from engine.executors import RayExecutor, build_executor
from engine.graph import Graph, Resources, Stage
from engine.run import run_graph
from engine.run_plan import plan_run
from engine.store import Store
from pipeline.config import ClusterConfig


def stage(name: str, function: str, marker: Path, **fields) -> Stage:
    environment = {"marker": str(marker)}
    return Stage(name, 0, "A", f"support.small_stages:{function}", {}, {}, environment=environment, **fields)


def graph_of(*stages: Stage) -> Graph:
    return Graph({one.id: one for one in stages})


@pytest.fixture
def executor(two_nodes: str) -> Iterator[RayExecutor]:
    built = build_executor(ClusterConfig(pin_sites=True), two_nodes)
    assert isinstance(built, RayExecutor)
    yield built
    built.close()


def test_pinned_sites_private_stages_run_on_their_own_node_only(two_nodes: str, tiny_run: Path, tmp_path) -> None:
    ended = run_tiny("cluster=local", "cluster.pin_sites=true", f"general.ray_address={two_nodes}", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    written = manifests(tmp_path / "runs" / "tiny")
    nodes = {site: {m["run"]["node"] for m in written.values() if m["private_to"] == site} for site in "AB"}
    assert len(nodes["A"]) == len(nodes["B"]) == 1 and nodes["A"] != nodes["B"]
    private = {(m["stage"], m["private_to"]) for m in written.values() if m["private_to"]}
    assert {("prepare", "A"), ("generator", "B"), ("segment_real", "A"), ("finetune", "B")} <= private
    inline = manifests(tiny_run)
    for name in inline:  # where a stage runs is no part of what it makes
        assert deterministic(written[name]) == deterministic(inline[name]), name


def test_a_dead_worker_is_retried_and_an_error_is_not(executor: RayExecutor, tmp_path: Path) -> None:
    dying = stage("dying", "die_once", tmp_path / "died")
    failing = stage("failing", "fail", tmp_path / "failed")
    graph = graph_of(dying, failing)
    result = run_graph(plan_run(graph, Store(tmp_path / "run"), {}), Store(tmp_path / "run"), executor)
    assert result.finished == (dying.id,)
    assert (tmp_path / "run" / dying.id / "result.txt").read_text() == "second attempt"
    (outcome,) = result.failed
    assert outcome.stage_id == failing.id and "the lesion is not there" in str(outcome.error)
    assert (tmp_path / "failed").read_text() == "x"
    assert "ValueError: the lesion is not there" in Path(outcome.log).read_text()


def test_a_gpu_that_no_node_has_is_refused_instead_of_waited_for(executor: RayExecutor, tmp_path: Path) -> None:
    graph = graph_of(stage("training", "fail", tmp_path, resources=Resources(1, 1)))
    with pytest.raises(InputError, match="asks for 1 GPU, and there are 0"):
        run_graph(plan_run(graph, Store(tmp_path), {}), Store(tmp_path), executor)


def test_a_site_that_no_node_carries_is_refused(executor: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="site:C"):
        executor.check(graph_of(stage("prepare", "fail", tmp_path, private_to="C")))


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=100 * 2**20)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def test_a_cluster_that_is_taken_away_ends_the_run_in_clear_words_and_with_code_5(tmp_path: Path) -> None:
    """Ray alone ends the process after a minute, with code 1 and a message about a GCS."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=pipe, stdout=pipe, text=True) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        command = run_command("cluster=local", f"general.ray_address={address}", cwd=tmp_path)
        with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=subprocess.STDOUT, text=True) as run:
            assert run.stdout is not None
            for line in run.stdout:
                if line.startswith("done "):
                    break
            cluster.stdin.write("\n")
            cluster.stdin.flush()
            said = run.stdout.read()
    assert run.returncode == 5, said
    assert f"the Ray cluster at {address} is gone" in said and "run the same command again" in said
