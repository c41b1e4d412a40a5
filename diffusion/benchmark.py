"""What sampling costs over the bare network.

    python -m diffusion.benchmark --size-px 64

For each sampler the seconds of whole passes, random numbers, decoding and conversion included, beside the seconds of as
many bare forward passes of the denoiser on the same batch and of one bare decoding. The two are interleaved, bare,
whole, whole, bare, so that a machine that grows slower favours neither. Stated are the median of the rounds' ratios and
its 95 % interval, and the ratio of the fastest passes, which other work on the machine disturbs least. The network's
weights are random: what is computed does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np

from common.command import command
from common.machine import Machine, checked_device
from common.markdown import markdown_table
from common.plan import square_plan
from diffusion.planning import derive_settings
from diffusion.settings import SAMPLERS, AutoencoderConfig, DiffusionConfig
from training.timing import interleaved_seconds

if TYPE_CHECKING:
    from diffusion.model import Model

EVALUATIONS = {"ddpm": 10, "ddim": 10, "multistep": 10}  # the overhead of a step does not depend on their number
N_BOOTSTRAP = 2000
COLUMNS = ("model", "sampler", "evaluations", "images/s", "over the bare network", "fastest passes")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size-px", type=int, default=64, help="side of the square images")
    parser.add_argument("--repeats", type=int, default=12, help="rounds of two passes each")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; an experiment uses one")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Measure and print a Markdown table."""
    import torch

    checked_device(chosen.device)
    torch.set_num_threads(chosen.threads)
    rows = []
    for name, config in (("ddpm", DiffusionConfig()), ("ldm", DiffusionConfig(AutoencoderConfig()))):
        model = build_model(config, chosen.size_px, chosen.device)
        for sampler in SAMPLERS:
            measured = measure_overhead(model, sampler, EVALUATIONS[sampler], chosen.repeats)
            rows.append((name, sampler, EVALUATIONS[sampler], *measured))
    sys.stdout.write("\n".join(markdown_table(COLUMNS, rows)) + "\n")


def build_model(config: DiffusionConfig, size_px: int, device: str) -> Model:
    """A model of square grey images with the widths that are derived for the device."""
    import torch

    from diffusion.model import Model

    machine = Machine("cuda" if device.startswith("cuda") else "cpu", 8.0, False)
    settings = derive_settings(square_plan(size_px), 1000, 1, None, config, machine)
    torch.manual_seed(0)
    return Model(settings).eval().requires_grad_(False).to(torch.device(device))


def measure_overhead(model: Model, sampler: str, n_evaluations: int, n_repeats: int) -> tuple[str, str, str]:
    """Images per second, and what whole passes take over the bare network: in all rounds, and the fastest passes."""
    import torch

    from diffusion.batch_sampler import BatchSampler
    from diffusion.training import autocast

    passes = BatchSampler(model, None, sampler, n_evaluations)
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

    turns = {(work, turn): work for turn, work in enumerate((bare, whole, whole, bare))}
    seconds = interleaved_seconds(turns, n_repeats, model.device)
    of_bare, of_whole = (np.array([s for (w, _), s in seconds.items() if w is work]) for work in (bare, whole))
    ratios = of_whole.sum(axis=0) / of_bare.sum(axis=0) - 1
    draws = np.random.default_rng(0).choice(ratios, (N_BOOTSTRAP, n_repeats))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return (
        f"{passes.n_images / np.median(of_whole):.2f}",
        f"{100 * np.median(ratios):+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{100 * (of_whole.min() / of_bare.min() - 1):+.1f} %",
    )


if __name__ == "__main__":
    sys.exit(main())
