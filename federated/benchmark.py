"""What federated averaging costs.

    python -m federated.benchmark --sites 4

Aggregation is compared with the memory-bandwidth limit measured in the same run (read every site's model once, write
one), with per-key loops as other codebases do it, interleaved; rounds with their own training time; memory in models.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common.command import command
from common.files import write_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--floats", type=float, default=30e6, help="size of the model; 30e6 is nnU-Net's 2D network")
    parser.add_argument("--sites", type=int, default=4, help="number of models that are averaged")
    parser.add_argument("--repeats", type=int, default=15, help="of every aggregation")
    parser.add_argument("--threads", type=int, help="of the CPU (default: PyTorch's)")
    parser.add_argument("--epoch-s", type=float, default=20.0, help="local epoch of the round that is timed")
    parser.add_argument("--rounds", type=int, default=5, help="that are timed")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Measure and print; with ``--out`` the figures also go to a JSON file."""
    import torch

    from federated.aggregation_cost import measure_aggregation, measure_rounds

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="federated-benchmark-") as folder:
        figures = {
            **measure_aggregation(Path(folder), int(chosen.floats), chosen.sites, chosen.repeats),
            **measure_rounds(Path(folder), int(chosen.floats), chosen.sites, chosen.rounds, chosen.epoch_s),
            "threads": torch.get_num_threads(),
        }
    for line in report(figures, chosen.sites):
        sys.stdout.write(f"{line}\n")
    if chosen.out:
        write_json(chosen.out, figures)


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


if __name__ == "__main__":
    sys.exit(main())
