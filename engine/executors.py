"""Where stages run: in this process one after the other, or on Ray."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from common.errors import InputError, StoppedError
from engine.cluster import ClusterConfig
from engine.dependencies import REPOSITORY, files_digest
from engine.graph import Graph, Resources, Stage
from engine.run_stage import Outcome, execute_stage
from engine.store import StageKey, Store

log = logging.getLogger(__name__)

HEAD_INTERVAL_S, HEAD_TIMEOUT_S = 10.0, 5.0  # how often the cluster's head is asked, and for how long
SITE_SHARE = 0.001  # of the resource ``site:<name>``: it pins a task to a node and never runs out


class Executor(Protocol):
    """Starts stages and says which have ended."""

    capacity: Resources
    max_starts: int | None  # stages to start before the next wait; None: all that are ready

    def check(self, graph: Graph) -> None:
        """Refuse a graph that asks for what is not there (InputError)."""

    def submit(self, stage: Stage, run: Path, key: StageKey, *, resumes: bool) -> None:
        """Start a stage, or let it go on from its checkpoint."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Stages that ended, waiting at most ``timeout_s`` for the first."""

    def close(self) -> None:
        """Give everything back."""


def build_executor(config: ClusterConfig, address: str | None) -> Executor:
    """The executor a configuration names."""
    return InlineExecutor() if config.kind == "inline" and address is None else RayExecutor(config, address)


class InlineExecutor:
    """One stage at a time in this process: for tests, debuggers and machines without Ray."""

    max_starts: int | None = 1

    def __init__(self) -> None:
        import torch

        self.capacity = Resources(cpus=float(os.cpu_count() or 1), gpus=float(torch.cuda.device_count()))
        self._ended: deque[Outcome] = deque()

    def check(self, graph: Graph) -> None:
        """Refuse stages that ask for more than this machine has."""
        _check_capacity(graph, self.capacity, {})

    def submit(self, stage: Stage, run: Path, key: StageKey, *, resumes: bool) -> None:
        """Run the stage now."""
        self._ended.append(execute_stage(stage, run, key, "inline", resumes=resumes))

    def wait(self, timeout_s: float) -> list[Outcome]:
        """What ran since the last call."""
        ended, self._ended = list(self._ended), deque()
        return ended

    def close(self) -> None:
        """Nothing to give back."""


class RayExecutor:
    """Ray core tasks: a new local cluster, or a running one by its address."""

    max_starts: int | None = None

    def __init__(self, config: ClusterConfig, address: str | None) -> None:
        import ray

        self._ray, self._config = ray, config
        python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        environment = {"env_vars": {"PYTHONPATH": python_path, "RAY_DEDUP_LOGS": "0"}}
        if not ray.is_initialized():
            ray.init(
                address=address or "local",  # None would join whatever cluster this machine happens to run
                num_cpus=config.n_cpus if address is None else None,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=environment,
                object_store_memory=None if address else config.object_store_mb * 2**20,
            )
        resources = ray.cluster_resources()
        self._resources: dict[str, float] = dict(resources)
        self.capacity = Resources(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))
        self._running: dict[Any, str] = {}
        self._task = ray.remote(max_retries=config.retries)(_execute_on_ray)
        self._head = str(ray.get_runtime_context().gcs_address)
        self._asked_s = time.monotonic()

    def check(self, graph: Graph) -> None:
        """Ray would wait for ever for a resource that no node has: refuse before the start."""
        _check_capacity(graph, self.capacity, self._resources if self._config.pin_sites else {})
        if self._config.pin_sites:
            stages = graph.stages.values()
            for site in sorted({site for stage in stages for site in (stage.private_to, *stage.members) if site}):
                if f"site:{site}" not in self._resources:
                    raise InputError(
                        f"no node carries the resource 'site:{site}'",
                        where="cluster.pin_sites",
                        fix=f"start that site's node with `ray start ... --resources='{{\"site:{site}\": 1}}'`, "
                        "or set cluster.pin_sites=false",
                    )

    def submit(self, stage: Stage, run: Path, key: StageKey, *, resumes: bool) -> None:
        """Start the stage as a Ray task; pinned to its site's node where asked."""
        pinned = self._config.pin_sites and stage.private_to
        asked = stage.own_resources  # its workers ask for themselves
        options = {
            "num_cpus": asked.cpus,
            "num_gpus": asked.gpus,
            "resources": {f"site:{stage.private_to}": SITE_SHARE} if pinned else {},
            "name": stage.id,
        }
        site_share = SITE_SHARE if self._config.pin_sites else 0.0
        reference = self._task.options(**options).remote(stage, run, key, resumes, files_digest(), site_share)
        self._running[reference] = stage.id

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes of ended tasks; a worker that died too often is an outcome too.

        Raises:
            StoppedError: the cluster is gone.
        """
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        if time.monotonic() - self._asked_s > HEAD_INTERVAL_S:
            self._check_head()
        outcomes = []
        for reference in ended:
            stage_id = self._running.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                self._check_head()
                outcomes.append(Outcome(stage_id, f"its worker died {self._config.retries + 1} times: {error}"))
        return outcomes

    def _check_head(self) -> None:
        """Ask the head three times: Ray itself would end this process after a minute, without a word of ours."""
        host, _, port = self._head.rpartition(":")
        for attempt in range(3):
            try:
                socket.create_connection((host, int(port)), timeout=HEAD_TIMEOUT_S).close()
                self._asked_s = time.monotonic()
                return
            except OSError as error:
                log.warning("the head of the Ray cluster at %s does not answer (%s)", self._head, error)
                time.sleep(attempt)
        raise StoppedError(f"the Ray cluster at {self._head} is gone. Start it and run the same command again")

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def _execute_on_ray(stage: Stage, run: Path, key: StageKey, resumes: bool, program: str, site_share: float) -> Outcome:
    """The Ray task: the worker must run the driver's code, then the stage runs as anywhere."""
    import ray

    from engine.ray_workers import RayWorkers

    if files_digest() != program:
        return Outcome(stage.id, f"the node {ray.util.get_node_ip_address()} runs another version of autoshare's code")
    log_path = Store(run).log_path(stage)
    make_workers = partial(RayWorkers, resources=stage.worker_resources, site_share=site_share, log_path=log_path)
    node = ray.get_runtime_context().get_node_id()
    return execute_stage(stage, run, key, node, make_workers, resumes=resumes)


def _check_capacity(graph: Graph, capacity: Resources, resources: Mapping[str, float]) -> None:
    for stage in graph.stages.values():
        for kind, asked, there in (
            ("GPU", stage.resources.gpus, capacity.gpus),
            ("CPU", stage.resources.cpus, capacity.cpus),
        ):
            if asked > there:
                raise InputError(
                    f"stage {stage.id} asks for {asked:g} {kind}, and there are {there:g}",
                    where=f"cluster.{kind.lower()}s",
                    fix=f"choose another cluster= (for example cluster=local), or lower cluster.{kind.lower()}s",
                )
