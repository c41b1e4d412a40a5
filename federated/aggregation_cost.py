"""Seconds and memory of an aggregation and of a round of federated averaging, for ``federated.benchmark``."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from engine.workers import InlineWorkers, WorkerSpec
from federated.average import average_updates
from federated.rounds import run_rounds
from federated.settings import RoundSettings
from federated.update import open_update, overwrite_update, read_into, write_update

MIB = 2**20


def measure_aggregation(folder: Path, n_floats: int, n_sites: int, repeats: int) -> dict[str, float]:
    """Median times of the ways to aggregate, interleaved, and the peak memory of ours."""
    shapes = layer_shapes(n_floats)
    models = []
    for site in range(n_sites):
        generator = torch.Generator().manual_seed(site)
        models.append({f"layer{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)})
        write_update(folder / f"{site}.safetensors", models[-1], {})
    paths = {str(site): folder / f"{site}.safetensors" for site in range(n_sites)}
    layout = open_update(paths["0"]).layout
    vectors = [torch.cat([tensor.flatten() for tensor in model.values()]) for model in models]
    weights = {site: 10.0 + int(site) for site in paths}
    out = torch.empty_like(vectors[0])
    ways: dict[str, Callable[[], Any]] = {
        "limit": lambda: _read_all_write_one(vectors, out),
        "files": lambda: average_updates(paths, weights, layout),
        "per_key_fresh": lambda: _per_key(models, list(weights.values()), torch.float32),
        "per_key_double": lambda: _per_key(models, list(weights.values()), torch.float64),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    n_bytes = 4 * out.numel()
    limit_s = statistics.median(times["limit"])
    return {
        **{f"{name}_s": statistics.median(values) for name, values in times.items()},
        "model_mib": n_bytes / MIB,
        "bandwidth_gib_s": (n_sites + 1) * n_bytes / limit_s / 2**30,
        "peak_models": _in_a_fresh_process(_peak_models, paths, weights, n_bytes),
    }


def layer_shapes(n_floats: int) -> list[tuple[int, ...]]:
    """Convolutions of growing width, biases and norms, together about ``n_floats``."""
    shapes: list[tuple[int, ...]] = []
    left, width = n_floats, 32
    while left > 0:
        width = min(512, width * 2)
        block = [(width, width, 3, 3), (width,), (width,), (width,)]
        shapes += block
        left -= sum(torch.Size(shape).numel() for shape in block)
    return shapes


def measure_rounds(folder: Path, n_floats: int, n_sites: int, n_rounds: int, epoch_s: float) -> dict[str, float]:
    """What a round takes beyond the local training, with models of full size and sites that only wait."""
    specs = {
        str(site): WorkerSpec("federated.aggregation_cost:WaitingSite", {"n_floats": n_floats, "epoch_s": epoch_s})
        for site in range(n_sites)
    }
    ends: list[float] = []
    run_rounds(
        ConcurrentWorkers(specs),
        folder / "rounds",
        RoundSettings(rounds=1 + n_rounds),
        lambda done, total, unit: ends.append(time.perf_counter()),
    )
    # the median, as the hub's three files of the model are made in the first rounds and written over in all others
    overhead_s = statistics.median(end - start for start, end in itertools.pairwise(ends)) - epoch_s
    return {"round_overhead_s": overhead_s, "round_overhead_share": overhead_s / epoch_s, "epoch_s": epoch_s}


class ConcurrentWorkers(InlineWorkers):
    """Sites at work at the same time, as processes are: pauses and file copies do not hold each other up."""

    def ask(self, method: str, arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """See ``Workers``."""
        with ThreadPoolExecutor(len(arguments)) as pool:
            answers = pool.map(lambda item: super(ConcurrentWorkers, self).ask(method, dict([item])), arguments.items())
            return {site: answer for answered in answers for site, answer in answered.items()}


class WaitingSite:
    """A site whose training is a pause: what is left of a round is its overhead. Weights and momentum travel."""

    def __init__(self, n_floats: int, epoch_s: float) -> None:
        shapes = layer_shapes(n_floats)
        names = [f"{prefix}layer{i}" for prefix in ("", "momentum/") for i in range(len(shapes))]
        self._tensors = {name: torch.randn(shape) for name, shape in zip(names, shapes * 2, strict=True)}
        self._epoch_s = epoch_s

    def describe(self, initial: str) -> dict[str, Any]:
        """See ``Client``."""
        write_update(Path(initial), self._tensors, {})
        return {"n_cases": 10}

    def train(self, round_index: int, model: str, update: str, keep_rounds: list[int]) -> dict[str, Any]:
        """Wait as long as an epoch takes, then send everything, a little changed as no two sites' weights are equal."""
        time.sleep(self._epoch_s)
        for tensor in self._tensors.values():
            tensor.view(-1)[0] += torch.rand(())
        overwrite_update(Path(update), self._tensors, {})
        return {"train_loss": 0.0, "train_s": self._epoch_s}

    def validate(self, round_index: int, model: str) -> dict[str, Any]:
        """Read the average; the next round trains from it."""
        read_into(Path(model), self._tensors)
        return {"val_dice": 0.5, "validate_s": 0.0}

    def export(self, round_index: int, model: str, out: str) -> None:
        """Nothing: no network is behind the tensors."""


def _read_all_write_one(vectors: list[torch.Tensor], out: torch.Tensor) -> None:
    """As few bytes as any aggregation moves: every vector read once (a sum in cache), one written."""
    for vector in vectors[1:]:
        vector.sum()
    out.copy_(vectors[0])


def _per_key(
    models: list[dict[str, torch.Tensor]], weights: list[float], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The usual way: key by key, a scaled copy per site and their sum."""
    total = sum(weights)
    averaged = {}
    for name in models[0]:
        scaled = [model[name].to(dtype) * (weight / total) for model, weight in zip(models, weights, strict=True)]
        averaged[name] = torch.stack(scaled).sum(dim=0).float()
    return averaged


def _peak_models(paths: Mapping[str, Path], weights: Mapping[str, float], n_bytes: int) -> float:
    """Highest anonymous memory during an aggregation over what it was before it, in models; mapped files are not it."""
    layout = open_update(paths["0"]).layout
    before, peak, ended = _anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, _anonymous_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = average_updates(paths, weights, layout)
    peak = max(peak, _anonymous_bytes())
    ended.set()
    watcher.join()
    del result
    return (peak - before) / n_bytes


def _in_a_fresh_process(function: Callable[..., float], *arguments: Any) -> float:
    """Memory that this process has freed and kept would hide what an aggregation takes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return kib * 1024
