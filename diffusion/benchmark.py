"""What sampling costs over the bare network: ``python -m diffusion.benchmark``.

For each sampler the seconds of whole passes, random numbers, decoding and conversion included, beside the seconds of as
many bare forward passes of the denoiser on the same batch and of one bare decoding. The two are interleaved, pair by
pair; stated is the median of the pairs' ratios with the least and the largest. The network's weights are random: what
is computed does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from common.machine import Machine
from common.plan import Plan
from diffusion.model import Model
from diffusion.passes import Passes
from diffusion.planning import derive_settings
from diffusion.settings import SAMPLERS, AutoencoderConfig, DiffusionConfig
from diffusion.spatial_plan import spatial_plan_from_2d
from diffusion.training import autocast

EVALUATIONS = {"ddpm": 10, "ddim": 10, "multistep": 10}  # the overhead of a step does not depend on their number


@dataclass(frozen=True)
class Overhead:
    """Seconds of a pass over those of its bare network, less one: the median of pairs, and their range."""

    sampler: str
    median: float
    least: float
    largest: float
    images_per_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m diffusion.benchmark", description=__doc__)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(arguments)
    lines = [
        "| model | sampler | evaluations | images/s | over the bare network |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, config in (("ddpm", DiffusionConfig()), ("ldm", DiffusionConfig(AutoencoderConfig()))):
        model = build_model(config, chosen.size_px, chosen.device)
        for sampler in SAMPLERS:
            found = measure_overhead(model, sampler, EVALUATIONS[sampler], chosen.repeats)
            span = f"{100 * found.median:+.1f} % ({100 * found.least:+.1f} to {100 * found.largest:+.1f})"
            lines.append(f"| {name} | {sampler} | {EVALUATIONS[sampler]} | {found.images_per_s:.2f} | {span} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def build_model(config: DiffusionConfig, size_px: int, device: str) -> Model:
    """A model of square grey images with the widths that are derived for the device."""
    machine = Machine("cuda" if device.startswith("cuda") else "cpu", 8.0, False)
    settings = derive_settings(spatial_plan_from_2d(_square_plan(size_px)), 1000, 1, None, config, machine)
    torch.manual_seed(0)
    return Model(settings).eval().requires_grad_(False).to(torch.device(device))


def _square_plan(size_px: int) -> Plan:
    """nnU-Net's for square images of 64 px and more: 3 x 3 kernels, halved four times."""
    strides = ((1, 1), *[(2, 2)] * 4)
    return Plan((size_px, size_px), strides, ((3, 3),) * 5, (1.0, 1.0), (0, 1, 2), ("ZScore",), (False,), ({},), 12)


def measure_overhead(model: Model, sampler: str, n_evaluations: int, n_repeats: int) -> Overhead:
    """Pairs of a whole pass and its bare network, in turn first and second."""
    passes = Passes(model, None, sampler, n_evaluations)
    seeds = list(range(passes.n_images))
    noisy = torch.randn(passes.n_images, *model.noise_shape, device=model.device)
    times = torch.full((passes.n_images,), 500.0, device=model.device)

    @torch.inference_mode()
    def bare() -> None:
        with autocast(model.device, model.settings.precision):
            for _ in range(n_evaluations):
                model.denoiser(noisy, times)
            model.images(noisy)

    def whole() -> None:
        for _ in passes(seeds):
            pass

    whole()
    bare()
    ratios, seconds = [], []
    for repeat in range(n_repeats):
        order = (whole, bare) if repeat % 2 else (bare, whole)
        spent = {work: _seconds_of(work, model.device) for work in order}
        ratios.append(spent[whole] / spent[bare] - 1)
        seconds.append(spent[whole])
    rate = passes.n_images / statistics.median(seconds)
    return Overhead(sampler, statistics.median(ratios), min(ratios), max(ratios), rate)


def _seconds_of(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    sys.exit(main())
