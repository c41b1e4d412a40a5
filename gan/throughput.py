"""What sampling costs over the network alone.

    python -m gan.throughput --checkpoint runs/demo/fold_0/generator/A/generator.safetensors

Images per second of everything between seeds and integers in memory (random numbers, transfers, rounding) beside the
bare forward pass on numbers that lie ready, at the same batch size, in turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.command import command
from common.machine import found_device
from common.plan import square_plan
from gan.settings import GanConfig, derive_settings

if TYPE_CHECKING:
    from gan.batch_sampler import BatchSampler


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, help="generator.safetensors; else an untrained one of --res and --base"
    )
    parser.add_argument("--res", type=int, default=64, help="side of square images in pixels, a power of two")
    parser.add_argument("--base", type=int, default=16384, help="channel_base")
    parser.add_argument("--batch", type=int, help="images in a forward pass (default: what gan.sample takes)")
    parser.add_argument("--passes", type=int, default=4, help="forward passes in a round")
    parser.add_argument("--rounds", type=int, default=7, help="of both in turn")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ..., or auto: a GPU if there is one")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from gan.batch_sampler import BatchSampler
    from gan.model import GeneratorNetwork
    from gan.sample import open_generator

    device = found_device(chosen.device)
    if chosen.checkpoint:
        network = open_generator(chosen.checkpoint, device).network
    else:
        settings = derive_settings(square_plan(chosen.res), 2, 1, 1.0, GanConfig(channel_base=chosen.base))
        network = GeneratorNetwork(settings).eval().requires_grad_(False).to(device)
    sampler = BatchSampler(network, np.dtype(np.uint8), chosen.batch)
    seconds = measure(sampler, chosen.passes, chosen.rounds)
    n_images = chosen.passes * sampler.n_images
    ratio = statistics.median(b / s for s, b in zip(seconds["sampled"], seconds["bare"], strict=True))
    height, width = network.settings.image_size_px
    sys.stdout.write(
        f"{height} x {width} px, {sampler.n_images} images a pass, {device}, {torch.get_num_threads()} threads\n"
        f"sample         {n_images / statistics.median(seconds['sampled']):10.1f} images/s\n"
        f"bare forward   {n_images / statistics.median(seconds['bare']):10.1f} images/s\n"
        f"ratio          {ratio:10.3f}\n"
    )


def measure(sampler: BatchSampler, n_passes: int, n_rounds: int) -> dict[str, list[float]]:
    """Seconds of both ways in turn, after one round that does not count."""
    from training.timing import interleaved_seconds

    ready = sampler.draw(range(sampler.n_images)).to(sampler.device)

    def sampled() -> None:
        for _ in sampler(range(n_passes * sampler.n_images)):
            pass

    def bare() -> None:
        for _ in range(n_passes):
            sampler.forward(ready)

    return interleaved_seconds({"sampled": sampled, "bare": bare}, n_rounds, sampler.device)


if __name__ == "__main__":
    sys.exit(main())
