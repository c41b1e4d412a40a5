"""The figures of leakage as ``audit.json`` holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from memorization.gates import rounded
from memorization.leakage.evidence import MetricResult
from memorization.leakage.metrics import METRICS, Unmeasured


@dataclass(frozen=True)
class AuditedFigure:
    """A figure of the table as JSON holds it; numbers that are not there are None, and ``reason`` says why."""

    name: str
    says: str
    safer: str
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    p: float | None = None
    interval: str = ""
    test: str = ""
    reason: str = ""
    what_would_help: str = ""


def recorded(measured: Mapping[str, MetricResult | Unmeasured]) -> tuple[AuditedFigure, ...]:
    """The table as JSON holds it, in the digits on which gates decide; what is no finite number becomes None."""
    figures = []
    for metric in METRICS:
        result = measured[metric.name]
        if isinstance(result, Unmeasured):
            values: dict[str, object] = {"reason": result.reason, "what_would_help": result.what_would_help}
        else:
            numbers = {key: getattr(result, key) for key in ("value", "low", "high", "baseline", "p")}
            values = {key: rounded(number) if math.isfinite(number) else None for key, number in numbers.items()}
            values |= {"interval": result.interval, "test": result.test}
        values |= {"safer": metric.direction, "unit": metric.unit}
        figures.append(AuditedFigure(name=metric.name, says=metric.says, **values))  # type: ignore[arg-type]
    return tuple(figures)
