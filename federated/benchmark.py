"""What federated averaging costs: ``python -m federated.benchmark``.

Aggregation is compared with the memory-bandwidth limit measured in the same run (read every site's model once, write
one), with per-key loops as other codebases do it, interleaved; rounds with their own training time; memory in models.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from common.files import write_json
from engine.workers import InlineWorkers, WorkerSpec
from federated.average import average_updates
from federated.rounds import run_rounds
from federated.settings import RoundSettings
from federated.update import open_update, overwrite_update, read_into, write_update

MIB = 2**20


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; with ``--out`` the figures also go to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m federated.benchmark", description=__doc__)
    parser.add_argument("--floats", type=float, default=30e6, help="size of the model; 30e6 is nnU-Net's 2D network")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epoch-s", type=float, default=20.0, help="local epoch of the round that is timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="federated-benchmark-") as folder:
        figures = {
            **measure_aggregation(Path(folder), int(chosen.floats), chosen.sites, chosen.repeats),
            **measure_rounds(Path(folder), int(chosen.floats), chosen.sites, chosen.rounds, chosen.epoch_s),
            "threads": chosen.threads,
        }
    for line in report(figures, chosen.sites):
        sys.stdout.write(f"{line}\n")
    if chosen.out:
        write_json(chosen.out, figures)
    return 0


def report(figures: Mapping[str, float], n_sites: int) -> list[str]:
    """The figures as lines."""
    limit = figures["limit_s"]
    lines = [f"{n_sites} sites, {figures['model_mib']:.0f} MiB a model, {figures['threads']} threads"]
    lines.append(
        f"limit: read {n_sites} models, write one    {1e3 * limit:8.1f} ms  ({figures['bandwidth_gib_s']:.1f} GiB/s)"
    )
    for name in ("files", "per_key_fresh", "per_key_double"):
        lines.append(f"{name:38s}{1e3 * figures[f'{name}_s']:8.1f} ms  {figures[f'{name}_s'] / limit:5.2f} x the limit")
    lines.append(
        f"memory of an aggregation over files   {figures['peak_models']:8.2f} models, whatever the number of sites"
    )
    lines.append(
        f"round overhead                        {1e3 * figures['round_overhead_s']:8.1f} ms  "
        f"{100 * figures['round_overhead_share']:.2f} % of a round of {figures['epoch_s']:.0f} s"
    )
    return lines


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
        str(site): WorkerSpec("federated.benchmark:WaitingSite", {"n_floats": n_floats, "epoch_s": epoch_s})
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
        self._held = ("", -1)

    def describe(self, initial: str) -> dict[str, Any]:
        """See ``Client``."""
        write_update(Path(initial), self._tensors, {})
        return {"n_cases": 10}

    def train(self, round_index: int, model: str, update: str, keep_rounds: list[int]) -> dict[str, Any]:
        """Wait as long as an epoch takes, then send everything, a little changed as no two sites' weights are equal."""
        self._take(model, round_index)
        time.sleep(self._epoch_s)
        for tensor in self._tensors.values():
            tensor.view(-1)[0] += torch.rand(())
        self._held = ("", -1)
        overwrite_update(Path(update), self._tensors, {})
        return {"train_loss": 0.0, "train_s": self._epoch_s}

    def validate(self, round_index: int, model: str) -> dict[str, Any]:
        """Take the average."""
        self._take(model, round_index)
        return {"val_dice": 0.5, "validate_s": 0.0}

    def export(self, round_index: int, model: str, out: str) -> None:
        """Nothing: no network is behind the tensors."""

    def _take(self, model: str, round_index: int) -> None:
        if self._held != (model, round_index):
            read_into(Path(model), self._tensors)
        self._held = (model, round_index)


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


if __name__ == "__main__":
    sys.exit(main())
