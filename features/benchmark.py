"""What the exact search costs.

    python -m features.benchmark --queries 100000

Ours beside faiss's IndexFlatL2 (where it is installed) and a loop in double precision over some of the queries, in
turns in one process, on random unit vectors, the hardest case: all are about as far from each other. With ``--memory``
ours and faiss also run once in a process of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from common.command import command
from common.exit_codes import ExitCode
from common.files import write_json
from features.index import RESOLUTION_L2, nearest

N_NEIGHBOURS = 3
N_LOOPED = 200  # queries of the loop; its time is scaled to all of them
BLOCK = 4096  # vectors made at once
MIB = 2**20

Search = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Sizes:
    """How many vectors of which length, and threads."""

    queries: int
    references: int
    dimension: int
    threads: int


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=20_000, help="number of query vectors")
    parser.add_argument("--references", type=int, default=10_000, help="number of vectors that are searched")
    parser.add_argument("--dimension", type=int, default=1024, help="of a vector")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=3, help="of each search; the fastest counts")
    parser.add_argument("--memory", action="store_true", help="also peak memory; takes one more run of each")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> ExitCode:
    """Measure and print; failed where ours is not exact."""
    sizes = Sizes(chosen.queries, chosen.references, chosen.dimension, chosen.threads)
    references, queries = _vectors(sizes)
    with threadpool_limits(sizes.threads):
        seconds = _seconds(references, queries, chosen.repeats)
    exact = _is_exact(references, queries[:N_LOOPED])
    peaks = {name: _peak_mib(name, sizes) for name in seconds if name != "loop"} if chosen.memory else {}
    for name, (wall_s, cpu_s) in seconds.items():
        memory = f", peak memory {peaks[name]:.0f} MiB with the vectors" if name in peaks else ""
        sys.stdout.write(f"{name:5s} {wall_s:9.2f} s, {cpu_s:9.2f} s of CPU{memory}\n")
    sys.stdout.write(f"identical to double precision: {'yes' if exact else 'NO'}\n")
    if chosen.out:
        write_json(chosen.out, {**vars(sizes), "seconds": seconds, "peak_mib": peaks, "exact": exact})
    return ExitCode.DONE if exact else ExitCode.FAILED


def _searches() -> dict[str, Search]:
    offered = {"ours": _ours, "faiss": _faiss, "loop": _loop}
    return {name: search for name, search in offered.items() if name != "faiss" or importlib.util.find_spec("faiss")}


def _seconds(references: np.ndarray, queries: np.ndarray, repeats: int) -> dict[str, tuple[float, float]]:
    """The smallest wall time and CPU time of every search, in turns."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(repeats):
        for name, search in _searches().items():
            asked = queries[:N_LOOPED] if name == "loop" else queries
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            search(references, asked)
            scale = len(queries) / len(asked)
            taken = scale * (time.perf_counter() - wall_s), scale * (time.process_time() - cpu_s)
            before = best.get(name, taken)
            best[name] = min(before[0], taken[0]), min(before[1], taken[1])
    return best


def _ours(references: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return nearest(references, queries, N_NEIGHBOURS)


def _faiss(references: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In single precision; the distances of what it found are not computed again."""
    import faiss

    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references)
    distances, neighbours = index.search(queries, min(N_NEIGHBOURS, len(references)))
    return distances, neighbours


def _loop(references: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the search is held to: every distance in double precision, the first of equal ones first."""
    real = references.astype(np.float64)
    distances, neighbours = [], []
    for query in queries:
        squared = np.square(real - query).sum(axis=1)
        squared[squared < RESOLUTION_L2] = 0
        order = np.argsort(squared, kind="stable")[:N_NEIGHBOURS]
        distances.append(squared[order])
        neighbours.append(order)
    return np.array(distances), np.array(neighbours)


def _is_exact(references: np.ndarray, queries: np.ndarray) -> bool:
    pairs = zip(_ours(references, queries), _loop(references, queries), strict=True)
    return all(np.array_equal(ours, loops) for ours, loops in pairs)


def _vectors(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """References and queries: random unit vectors."""
    rng = np.random.default_rng(0)
    sides = []
    for n in (sizes.references, sizes.queries):
        side = np.empty((n, sizes.dimension), np.float32)
        for start in range(0, n, BLOCK):
            block = side[start : start + BLOCK]
            rng.standard_normal(out=block, dtype=np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
        sides.append(side)
    return sides[0], sides[1]


def _peak_mib(name: str, sizes: Sizes) -> float:
    """Largest resident memory of a process that makes the vectors and searches once."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_search_once, name, sizes).result()


def _search_once(name: str, sizes: Sizes) -> float:
    with threadpool_limits(sizes.threads):
        _searches()[name](*_vectors(sizes))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


if __name__ == "__main__":
    sys.exit(main())
