"""What sampling costs over the network alone: ``python -m gan.throughput``.

Images per second of everything between seeds and integers in memory (random numbers, transfers, rounding) beside the
bare forward pass on numbers that lie ready, at the same batch size, in turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from gan.batch_sampler import BatchSampler
from gan.model import GeneratorNetwork
from gan.sample import open_generator
from gan.settings import GanConfig
from gan.square import square_settings


@dataclass(frozen=True)
class Throughput:
    """Images per second, medians over the rounds, and the median of the rounds' ratios."""

    sampled_per_s: float
    bare_per_s: float
    ratio: float
    batch_size: int


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m gan.throughput", description="What sampling costs over the network."
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="generator.safetensors; else an untrained one of --res and --base"
    )
    parser.add_argument("--res", type=int, default=64, help="side of square images in pixels, a power of two")
    parser.add_argument("--base", type=int, default=16384, help="channel_base (default 16384)")
    parser.add_argument("--batch", type=int, help="images in a forward pass (default: what gan.sample takes)")
    parser.add_argument("--passes", type=int, default=4, help="forward passes in a round (default 4)")
    parser.add_argument("--rounds", type=int, default=7, help="of both in turn (default 7)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(arguments)
    try:
        network = _network(chosen)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    measured = measure(network, chosen.batch, chosen.passes, chosen.rounds)
    height, width = network.settings.image_size_px
    sys.stdout.write(
        f"{height} x {width} px, {measured.batch_size} images a pass, {chosen.device}, "
        f"{torch.get_num_threads()} threads\n"
        f"sample         {measured.sampled_per_s:10.1f} images/s\n"
        f"bare forward   {measured.bare_per_s:10.1f} images/s\n"
        f"ratio          {measured.ratio:10.3f}\n"
    )
    return 0


def measure(network: GeneratorNetwork, batch_size: int | None, n_passes: int, n_rounds: int) -> Throughput:
    """Both ways in turn, after one round that does not count."""
    passes = BatchSampler(network, np.dtype(np.uint8), batch_size)
    n_images = n_passes * passes.n_images
    ready = passes.draw(range(passes.n_images)).to(passes.device)

    def sampled() -> None:
        for _ in passes(range(n_images)):
            pass

    def bare() -> None:
        for _ in range(n_passes):
            passes.forward(ready)

    seconds: dict[str, list[float]] = {"sampled": [], "bare": []}
    for _ in range(n_rounds + 1):
        seconds["sampled"].append(_timed(sampled, passes.device))
        seconds["bare"].append(_timed(bare, passes.device))
    counted = list(zip(seconds["sampled"][1:], seconds["bare"][1:], strict=True))
    return Throughput(
        sampled_per_s=n_images / statistics.median(own for own, _ in counted),
        bare_per_s=n_images / statistics.median(other for _, other in counted),
        ratio=statistics.median(other / own for own, other in counted),
        batch_size=passes.n_images,
    )


def _timed(work: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _network(chosen: argparse.Namespace) -> GeneratorNetwork:
    if chosen.checkpoint:
        return open_generator(chosen.checkpoint, chosen.device).network
    settings = square_settings(chosen.res, 1, GanConfig(channel_base=chosen.base))
    return GeneratorNetwork(settings).eval().requires_grad_(False).to(chosen.device)


if __name__ == "__main__":
    sys.exit(main())
