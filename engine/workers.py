"""Long-lived workers, one a site: how the hub asks all sites something, and what becomes of a site that fails.

What passes is plain: JSON-able values, paths as text, and bytes of safetensors. Nothing else may cross a border.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Protocol

log = logging.getLogger(__name__)

PLAIN = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True)
class Failure:
    """Why a site gave no answer."""

    problem: str


@dataclass(frozen=True)
class WorkerSpec:
    """How a site's worker is made: ``module:Class`` and its keyword arguments."""

    factory: str
    arguments: Mapping[str, Any]

    def build(self) -> Any:
        """The worker itself."""
        return resolve_name(self.factory)(**self.arguments)


class Workers(Protocol):
    """One worker a site. ``ask`` calls a method of the worker at several sites at the same time."""

    sites: tuple[str, ...]

    def ask(self, method: str, arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The answers of the sites in ``arguments`` (site: keyword arguments), or a ``Failure``, by site.

        A worker that failed or died is thrown away and made anew from its spec when it is asked the next time.
        """

    def close(self) -> None:
        """End all workers."""


class InlineWorkers:
    """Workers in this process, asked one after the other: for tests, debuggers and machines without Ray."""

    def __init__(self, specs: Mapping[str, WorkerSpec]) -> None:
        self.sites = tuple(sorted(specs))
        self._specs = dict(specs)
        self._workers: dict[str, Any] = {}

    def ask(self, method: str, arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """See ``Workers``."""
        return {site: self._ask_one(site, method, values) for site, values in arguments.items()}

    def close(self) -> None:
        """See ``Workers``."""
        self._workers.clear()

    def _ask_one(self, site: str, method: str, values: Mapping[str, Any]) -> Any:
        check_plain(values)
        try:
            if site not in self._workers:
                self._workers[site] = self._specs[site].build()
            answer = getattr(self._workers[site], method)(**values)
        except Exception as error:
            log.warning("site %s: %s", site, traceback.format_exc())
            self._workers.pop(site, None)
            return Failure(f"{type(error).__name__}: {error}")
        check_plain(answer)
        return answer


def check_plain(value: Any) -> None:
    """Refuse what must not cross a border.

    Raises:
        TypeError: anything but JSON-able values and bytes.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(key)
            check_plain(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_plain(item)
    elif not isinstance(value, PLAIN):
        raise TypeError(f"{type(value).__name__} must not cross a site's border")
