"""Where stages run, and what each kind of stage asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageResources:
    """CPUs and GPUs of the three kinds of stages."""

    light: float = 1.0  # preparing, planning, sharing, merging
    embed: float = 1.0  # memorization, sampling, labelling, evaluation
    train: float = 1.0  # generators and networks


@dataclass(frozen=True)
class ClusterConfig:
    """Where stages run and what each kind asks for."""

    kind: str = "ray"  # or "inline": in this process, one after the other
    n_cpus: int | None = None  # of a local Ray; None: all
    cpus: StageResources = StageResources()
    gpus: StageResources = StageResources(0.0, 0.0, 0.0)
    pin_sites: bool = False  # a site's private stages run only on nodes with the Ray resource site:<name>
    retries: int = 3  # after the death of a worker; an error is not retried
    object_store_mb: int = 128
