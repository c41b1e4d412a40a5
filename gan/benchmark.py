"""What a training step costs.

    python -m gan.benchmark --res 64 --batch 16

Each phase of our networks and of the same networks computed as the papers write them (``gan.textbook``), interleaved in
one process, beside the roofs of the machine measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command import command
from common.files import write_json
from common.machine import found_device


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--res", type=int, default=64, help="side of the square images in px, a power of two")
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--channels", type=int, default=3, help="of the images")
    parser.add_argument("--fmaps", type=float, default=0.5, help="channel_base is this times 32768; 1 is low_shot")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of our networks")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ..., or auto: a GPU if there is one")
    parser.add_argument("--threads", type=int, help="of the CPU (default: PyTorch's)")
    parser.add_argument("--repeats", type=int, default=3, help="of every phase")
    parser.add_argument("--keep-memory", action="store_true", help="as a training does; for the times alone")
    parser.add_argument("--alone", action="store_true", help="without the textbook's operations beside")
    parser.add_argument("--private", action="store_true", help="differential privacy beside, not the textbook")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Measure and print; with ``--out`` the figures also go to a JSON file."""
    import torch

    from gan.step_cost import Spec, machine, measure, peak_bytes, roofs
    from training.memory import keep_freed_memory

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.keep_memory:
        keep_freed_memory()
    spec, device = Spec(mb=chosen.batch, fmaps=chosen.fmaps, precision=chosen.precision), found_device(chosen.device)
    names = ["ours", *([] if chosen.alone else ["private" if chosen.private else "textbook"])]
    case = (chosen.res, chosen.batch, chosen.channels, spec, device)
    figures: dict[str, Any] = {
        "case": {"res": chosen.res, "channels": chosen.channels, "threads": torch.get_num_threads(), **vars(spec)},
        "machine": machine(device),
        "roofs": roofs(device, chosen.batch, chosen.precision),
        **measure(case, names, chosen.repeats),
        "peak_bytes": {name: peak_bytes(name, case) for name in names},
    }
    for line in report(figures, names):
        sys.stdout.write(f"{line}\n")
    if chosen.out:
        write_json(chosen.out, figures)


def report(figures: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The figures as lines: per phase the minimum (median) seconds of each, and ours against the roof."""
    from gan.step_cost import INTERVALS, PHASES

    case, found = figures["case"], figures["roofs"]
    sizes = " / ".join(f"{count / 1e6:.1f} M" for count in figures["n_parameters"].values())
    lines = [
        f"{case['res']} px, batch {case['mb']}, {case['channels']} channels, fmaps {case['fmaps']}, "
        f"{case['precision']}, {case['threads']} threads, {figures['machine']['device']}; parameters G / D {sizes}",
        f"roofs: convolution {found['conv_gflops']:.0f} GFLOP/s, matrix product {found['matmul_gflops']:.0f} GFLOP/s, "
        f"copy {found['copy_gb_s']:.1f} GB/s",
        f"{'':10s}" + "".join(f"{name + ', s':>22s}" for name in names) + f"{'ratio':>8s}{'GFLOP':>9s}{'of roof':>9s}",
    ]
    work = {**figures["gflop"], "iteration": sum(figures["gflop"][phase] / INTERVALS[phase] for phase in PHASES)}
    for phase in (*PHASES, "ema", "iteration"):
        best = {name: figures["min_s"][name][phase] for name in names}
        cells = "".join(f"{best[name]:12.3f} ({figures['median_s'][name][phase]:7.3f})" for name in names)
        ratio = f"{best[names[-1]] / best['ours']:8.2f}" if len(names) > 1 else f"{'':8s}"
        share = f"{work[phase]:9.1f}{work[phase] / best['ours'] / found['conv_gflops']:9.0%}" if phase in work else ""
        lines.append(f"{phase:10s}{cells}{ratio}{share}")
    for name in names:
        sec_per_kimg = figures["min_s"][name]["iteration"] / case["mb"] * 1000
        memory = figures["peak_bytes"][name] / 2**30
        lines.append(f"{name:10s}{sec_per_kimg:12.1f} s/kimg, peak memory {memory:.2f} GiB")
    return lines


if __name__ == "__main__":
    sys.exit(main())
