"""How long a generator trains on this machine: seconds per thousand images, measured in short trainings in turns.

Each round trains every generator three times in temporary folders, on the slices of all sites, with as many sites at
once as the experiment has at once. Two lengths with one snapshot each differ by steps alone; the third has the
experiment's snapshots, and what it takes beside its steps is what every training takes once. The time of the monitor,
which such short trainings do not have, is a share of the training's own, which the generator's adapter states.
"""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.errors import InputError
from common.files import read_json
from common.image_set import load_image_set
from common.plan import load_plan
from dataset.training_splits import TRAIN_SPLITS
from engine.run import run_graph
from engine.run_stage import set_threads
from engine.store import Store
from generators.interface import TrainRequest
from generators.registry import find_generator
from pipeline.config import ExperimentConfig
from pipeline.launch import plan_experiment
from pipeline.site_data import read_sites
from training.timing import seconds_of

log = logging.getLogger(__name__)

LOOK_KIMG = (0.016, 0.064)  # for a first look at the speed
WHOLE_KIMG = 0.128  # lengths are multiples: 16 steps of eight images, in which every lazy phase of a GAN comes once
SHORT_OVER_LONG = 0.25
MIN_SECONDS = 1e-3  # of a difference: a busy machine may take longer for the shorter one
SEED = 0


@dataclass(frozen=True)
class Probe:
    """A short training of one generator on one site's slices; a worker process can be given it."""

    adapter: str
    settings: Mapping[str, Any]
    slices: Path
    plan: Path
    train_on: str
    device: str
    n_threads: int

    def train(self, kimg: float, *, n_snapshots: int | None = None) -> tuple[float, float]:
        """Seconds, and the thousand images that were shown; ``n_snapshots``: other than the settings'."""
        set_threads(self.n_threads)
        settings = dict(self.settings) | ({} if n_snapshots is None else {"n_snapshots": n_snapshots})
        images = load_image_set(self.slices).of_split(*TRAIN_SPLITS[self.train_on]).images
        with TemporaryDirectory(prefix="autoshare_probe_") as folder:
            request = TrainRequest(
                images=images,
                plan=load_plan(self.plan),
                kimg=kimg,
                settings=settings,
                out=Path(folder),
                seed=SEED,
                device=self.device,
            )
            seconds = seconds_of(partial(find_generator(self.adapter).train, request), self.device)
            return seconds, float(read_json(Path(folder) / "card.json")["length"]["kimg"])


@dataclass(frozen=True)
class Speed:
    """What each round and site measured of one generator."""

    seconds_per_kimg: tuple[float, ...]
    fixed_seconds: tuple[float, ...]  # of a training, beside its steps and its gauge
    gauge_share: float

    def kimg_in(self, minutes: float) -> float:
        """The length, in two significant digits, that takes so long.

        Raises:
            InputError: less time than a training takes beside its steps.
        """
        fixed_s = max(0.0, statistics.median(self.fixed_seconds))
        kimg = (60 * minutes - fixed_s) / (statistics.median(self.seconds_per_kimg) * (1 + self.gauge_share))
        if kimg <= 0:
            raise InputError(
                f"a training takes {fixed_s:.0f} s beside its steps, more than these minutes",
                where="--minutes",
                fix=f"use more than {fixed_s / 60:.2g}",
            )
        return float(f"{kimg:.2g}")


def measure(configs: Mapping[str, ExperimentConfig], n_rounds: int, seconds: float) -> dict[str, Speed]:
    """The speed of each experiment's generator; ``seconds``: about what the longest training of a round takes."""
    config = next(iter(configs.values()))
    folders = slices_of_sites(config)
    probes = {name: [_probe(one, *paths) for paths in folders] for name, one in configs.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in configs}
    with ProcessPoolExecutor(_n_at_once(config, len(folders)), get_context("spawn")) as pool:
        lengths = {name: max(pool.map(_long_kimg, own, repeat(seconds))) for name, own in probes.items()}
        for number in range(n_rounds):
            for name, own in probes.items():
                rows = list(pool.map(_measure_once, own, repeat(lengths[name])))
                rates = ", ".join(f"{rate:.3g}" for rate, _ in rows)
                log.info("round %d of %d, %s: %s s/kimg", number + 1, n_rounds, name, rates)
                found[name] += rows
    return {name: _speed(configs[name], rows) for name, rows in found.items()}


def slices_of_sites(config: ExperimentConfig) -> list[tuple[Path, Path]]:
    """Slices and plan of every site, made in the experiment's own folder, where its run will find them done.

    Raises:
        InputError: a stage failed; its log is named.
    """
    from engine.executors import InlineExecutor

    store = Store(config.run)
    plan = plan_experiment(config, store, read_sites(config))
    fold = config.folds[0]
    trainings = [stage for stage in plan.graph.stages.values() if stage.name == "generator" and stage.fold == fold]
    needed = set().union(*(plan.graph.ancestors(stage.id) for stage in trainings))
    result = run_graph(replace(plan, graph=plan.graph.only(needed)), store, InlineExecutor())
    for outcome in result.failed:
        raise InputError(str(outcome.error), where=outcome.log, fix="mend the cause and run the same command again")
    inputs = [training.inputs for training in trainings]
    return [(store.folder(one["slices"]), store.folder(one["plan"]) / "plans.json") for one in inputs]


def _probe(config: ExperimentConfig, slices: Path, plan: Path) -> Probe:
    generator = config.generator
    settings = generator.backend.check(generator.settings)
    device = "cuda" if config.cluster.gpus.train else "cpu"
    n_threads = max(1, int(config.cluster.cpus.train))
    return Probe(generator.adapter_path, settings, slices, plan, generator.train_on, device, n_threads)


def _n_at_once(config: ExperimentConfig, n_sites: int) -> int:
    """Sites that train at the same time."""
    cluster = config.cluster
    if cluster.kind == "inline" or cluster.gpus.train:
        return 1
    return max(1, min(n_sites, int((cluster.n_cpus or os.cpu_count() or 1) / cluster.cpus.train)))


def _long_kimg(probe: Probe, seconds: float) -> float:
    """A length of about so many seconds, of whole multiples where they are not too long."""
    probe.train(LOOK_KIMG[0], n_snapshots=1)  # for what is loaded once
    rate = _rate(probe, *LOOK_KIMG)
    unit = WHOLE_KIMG if 2 * WHOLE_KIMG * rate <= seconds else LOOK_KIMG[0]
    return unit * max(2, round(seconds / rate / unit))


def _measure_once(probe: Probe, long_kimg: float) -> tuple[float, float]:
    """Seconds per thousand images, and those that a training takes once."""
    unit = WHOLE_KIMG if long_kimg >= 2 * WHOLE_KIMG else LOOK_KIMG[0]
    short_kimg = unit * max(1, round(SHORT_OVER_LONG * long_kimg / unit))
    rate = _rate(probe, short_kimg, long_kimg)
    seconds, kimg = probe.train(short_kimg)
    return rate, seconds - rate * kimg


def _rate(probe: Probe, short_kimg: float, long_kimg: float) -> float:
    """Seconds per thousand images, of the steps by which the one is longer."""
    (short_s, short), (long_s, long) = (probe.train(kimg, n_snapshots=1) for kimg in (short_kimg, long_kimg))
    return max(long_s - short_s, MIN_SECONDS) / (long - short)


def _speed(config: ExperimentConfig, rows: Sequence[tuple[float, float]]) -> Speed:
    rates, fixed = zip(*rows, strict=True)
    return Speed(tuple(rates), tuple(fixed), config.generator.backend.monitor_share())
