"""A site's worker as a Ray actor: a process of its own, on its site's node where sites are pinned."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from engine.graph import Resources
from engine.run_stage import logging_to, set_threads
from engine.workers import Failure, InlineWorkers, WorkerSpec, check_plain

log = logging.getLogger(__name__)


class RayWorkers:
    """See ``engine.workers.Workers``; ``resources`` are one worker's, ``site_share`` that of ``site:<name>``."""

    def __init__(
        self, specs: Mapping[str, WorkerSpec], resources: Resources, site_share: float, log_path: Path
    ) -> None:
        self.sites = tuple(sorted(specs))
        self._specs, self._resources, self._site_share = dict(specs), resources, site_share
        self._log_path = log_path
        self._actors: dict[str, Any] = {}

    def ask(self, method: str, arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """All sites work at the same time; the answers are waited for."""
        for values in arguments.values():
            check_plain(values)
        asked = {site: self._actor(site).ask.remote(method, dict(values)) for site, values in arguments.items()}
        return {site: self._answer(site, reference) for site, reference in asked.items()}

    def close(self) -> None:
        """End the processes."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _actor(self, site: str) -> Any:
        if site not in self._actors:
            log_path = self._log_path.with_name(f"{self._log_path.stem}-{site}.log")
            options = {
                "num_cpus": self._resources.cpus,
                "num_gpus": self._resources.gpus,
                "resources": {f"site:{site}": self._site_share} if self._site_share else {},
            }
            actor_class = ray.remote(SiteProcess).options(**options)
            self._actors[site] = actor_class.remote(site, self._specs[site], str(log_path), self._resources.cpus)
        return self._actors[site]

    def _answer(self, site: str, reference: Any) -> Any:
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            answer = Failure(f"its worker died ({type(error).__name__})")
        if isinstance(answer, Failure):
            log.warning("site %s: %s", site, answer.problem)
            ray.kill(self._actors.pop(site))
        return answer


class SiteProcess:
    """What lives in the actor's process: the one site's worker, and its log."""

    def __init__(self, site: str, spec: WorkerSpec, log_path: str, cpus: float) -> None:
        set_threads(max(1, int(cpus)))
        self._site, self._workers, self._log_path = site, InlineWorkers({site: spec}), Path(log_path)

    def ask(self, method: str, values: dict[str, Any]) -> Any:
        """Call the worker, made at the first call; an error becomes a ``Failure``, its trace goes to the site's log."""
        with logging_to(self._log_path):
            return self._workers.ask(method, {self._site: values})[self._site]
