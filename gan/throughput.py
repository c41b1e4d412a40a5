"""What sampling costs over the network alone: ``python -m gan.throughput``.

Images per second of everything between seeds and integers in memory (random numbers, transfers, rounding) beside the
bare forward pass on numbers that lie ready, at the same batch size, in turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.plan import square_plan
from gan.batch_sampler import BatchSampler
from gan.model import GeneratorNetwork
from gan.sample import open_generator
from gan.settings import GanConfig, derive_settings
from training.timing import interleaved_seconds


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
        if chosen.checkpoint:
            network = open_generator(chosen.checkpoint, chosen.device).network
        else:
            settings = derive_settings(square_plan(chosen.res), 2, 1, 1.0, GanConfig(channel_base=chosen.base))
            network = GeneratorNetwork(settings).eval().requires_grad_(False).to(chosen.device)
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
    sampler = BatchSampler(network, np.dtype(np.uint8), batch_size)
    n_images = n_passes * sampler.n_images
    ready = sampler.draw(range(sampler.n_images)).to(sampler.device)

    def sampled() -> None:
        for _ in sampler(range(n_images)):
            pass

    def bare() -> None:
        for _ in range(n_passes):
            sampler.forward(ready)

    seconds = interleaved_seconds({"sampled": sampled, "bare": bare}, n_rounds, sampler.device)
    return Throughput(
        sampled_per_s=n_images / statistics.median(seconds["sampled"]),
        bare_per_s=n_images / statistics.median(seconds["bare"]),
        ratio=statistics.median(b / s for s, b in zip(seconds["sampled"], seconds["bare"], strict=True)),
        batch_size=sampler.n_images,
    )


if __name__ == "__main__":
    sys.exit(main())
