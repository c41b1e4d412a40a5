"""What a training step costs: ``python -m gan.benchmark --res 64 --batch 16``.

Each phase of our networks and of the same networks computed as the papers write them (``gan.textbook``), interleaved in
one process, beside the roofs of the machine measured in the same run. ``build`` sets any other implementation beside.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from common.files import write_json
from common.settings import from_dict
from gan.privacy import Mechanism
from gan.settings import GanConfig
from gan.square import square_settings
from gan.textbook import as_textbook
from gan.train_step import TrainStep
from training.memory import keep_freed_memory

PHASES = ("gmain", "greg", "dmain", "dreg")
INTERVALS = {"gmain": 1, "greg": 4, "dmain": 1, "dreg": 16, "ema": 1}  # a phase's share of an iteration is 1 / interval


@dataclass(frozen=True)
class Spec:
    """A configuration in the terms of stylegan2-ada-pytorch; channel_base is ``fmaps`` x 32768, channel_max 512."""

    mb: int = 16
    mbstd: int = 4
    fmaps: float = 0.5
    lrate: float = 0.0025
    gamma: float = 0.0512  # of its "auto": 0.0002 res^2 / mb, here at 64 px and 16
    map: int = 2
    ema_kimg: float = 5.0
    precision: str = "fp32"


class Steps:
    """The phases of one implementation, each with its optimiser step, on random numbers of its own."""

    def __init__(self, phases: TrainStep) -> None:
        self.phases = phases
        self.draws = torch.Generator().manual_seed(0)
        self.n_parameters = {
            "generator": sum(p.numel() for p in phases.generator.parameters()),
            "discriminator": sum(p.numel() for p in phases.discriminator.parameters()),
        }

    def gmain(self, real: Tensor) -> None:
        """Generator loss; ``real`` (b, channels, res, res) in [-1, 1] is not used."""
        self.phases.generator_main(self.draws)

    def greg(self, real: Tensor) -> None:
        """Path length; ``real`` is not used."""
        self.phases.path_length(self.draws)

    def dmain(self, real: Tensor) -> None:
        """Discriminator loss."""
        self.phases.discriminator_main(real, self.draws)

    def dreg(self, real: Tensor) -> None:
        """R1."""
        self.phases.r1(real, self.draws)

    def ema(self) -> None:
        """Average of the generator's weights."""
        self.phases.average_weights()


class PrivateSteps(Steps):
    """The same with differential privacy: the discriminator's two phases are others."""

    def dmain(self, real: Tensor) -> None:
        """Discriminator loss, every real image's gradient by itself."""
        mechanism = Mechanism(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, delta=1e-5, n_expected=len(real))
        self.phases.private_discriminator_main(real, self.draws, mechanism, self.draws)

    def dreg(self, real: Tensor) -> None:
        """R2; ``real`` is not used."""
        self.phases.r2(self.draws)


def build(res: int, batch: int, channels: int, spec: Spec | Mapping[str, Any], device: str) -> Steps:
    """Networks for square images of ``res`` (a power of two) with their optimisers.

    Raises:
        InputError: ``res`` is no power of two from 8 on.
    """
    spec = spec if isinstance(spec, Spec) else from_dict(Spec, spec)
    config = GanConfig(
        batch_size=batch,
        channel_base=round(spec.fmaps * 32768),
        mapping_layers=spec.map,
        learning_rate=spec.lrate,
        r1_gamma=spec.gamma,
        minibatch_std_group=spec.mbstd,
        precision=spec.precision,
        ema_kimg=spec.ema_kimg,
    )
    return Steps(TrainStep(square_settings(res, channels, config), 0, torch.device(device)))


def build_textbook(res: int, batch: int, channels: int, spec: Spec | Mapping[str, Any], device: str) -> Steps:
    """The same networks and weights, every operation as the papers write it, in fp32."""
    steps = build(res, batch, channels, spec, device)
    for network in steps.phases.modules().values():
        as_textbook(network)
    return steps


def build_private(res: int, batch: int, channels: int, spec: Spec | Mapping[str, Any], device: str) -> Steps:
    """The same networks, trained with differential privacy; no deviation over a minibatch then."""
    spec = spec if isinstance(spec, Spec) else from_dict(Spec, spec)
    return PrivateSteps(build(res, batch, channels, replace(spec, mbstd=1), device).phases)


IMPLEMENTATIONS: Mapping[str, Callable[..., Steps]] = {
    "ours": build,
    "textbook": build_textbook,
    "private": build_private,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; with ``--out`` the figures also go to a JSON file."""
    chosen = _parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.keep_memory:
        keep_freed_memory()
    spec = Spec(mb=chosen.batch, fmaps=chosen.fmaps, precision=chosen.precision)
    names = ["ours", *([] if chosen.alone else ["private" if chosen.private else "textbook"])]
    case = (chosen.res, chosen.batch, chosen.channels, spec, chosen.device)
    figures: dict[str, Any] = {
        "case": {"res": chosen.res, "channels": chosen.channels, "threads": chosen.threads, **vars(spec)},
        "machine": machine(chosen.device),
        "roofs": roofs(chosen.device, chosen.batch, chosen.precision),
        **measure(case, names, chosen.repeats),
        "peak_bytes": {name: peak_bytes(name, case) for name in names},
    }
    for line in report(figures, names):
        sys.stdout.write(f"{line}\n")
    if chosen.out:
        write_json(chosen.out, figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gan.benchmark", description=__doc__)
    parser.add_argument("--res", type=int, default=64, help="side of the square images in px, a power of two")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--fmaps", type=float, default=0.5, help="channel_base is this times 32768; 1 is low_shot")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep-memory", action="store_true", help="as a training does; for the times alone")
    parser.add_argument("--alone", action="store_true", help="without the textbook's operations beside")
    parser.add_argument("--private", action="store_true", help="differential privacy beside, not the textbook")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    return parser


def measure(case: tuple[int, int, int, Spec, str], names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Seconds of every phase, all implementations in turn before the next repetition, and the work it is."""
    res, batch, channels, _, device = case
    steps = {name: IMPLEMENTATIONS[name](*case) for name in names}
    real = torch.rand(batch, channels, res, res, device=device) * 2 - 1
    gflop = {phase: _gflop(getattr(steps["ours"], phase), real) for phase in PHASES}
    times: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in (*PHASES, "ema")} for name in names}
    for repeat in range(repeats + 1):  # the first warms up
        for phase in (*PHASES, "ema"):
            for name in names:
                arguments = () if phase == "ema" else (real,)
                seconds = timed(getattr(steps[name], phase), *arguments, device=device)
                if repeat:
                    times[name][phase].append(seconds)
    return {
        "gflop": gflop,
        "n_parameters": steps["ours"].n_parameters,
        "min_s": {name: _with_iteration(times[name], min) for name in names},
        "median_s": {name: _with_iteration(times[name], statistics.median) for name in names},
    }


def timed(function: Callable[..., Any], *arguments: Tensor, device: str) -> float:
    """Seconds of one call, the device's work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    function(*arguments)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _with_iteration(times: Mapping[str, list[float]], reduce: Callable[[list[float]], float]) -> dict[str, float]:
    of_phase = {phase: reduce(seconds) for phase, seconds in times.items()}
    iteration = sum(seconds / INTERVALS[phase] for phase, seconds in of_phase.items())
    return {**of_phase, "iteration": iteration}


class _FlopCounter(TorchDispatchMode):
    """Counts convolutions and matrix products, of every derivative too."""

    def __init__(self) -> None:
        super().__init__()
        self.n_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.n_flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def _gflop(phase: Callable[[Tensor], None], real: Tensor) -> float:
    with _FlopCounter() as counter:
        phase(real)
    return counter.n_flops / 1e9


def roofs(device: str, batch: int, precision: str) -> dict[str, float]:
    """What the machine can do: GFLOP/s of the best 3x3 convolution of 512 channels, and of a matrix product; GB/s."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    found = {"conv_gflops": 0.0}
    for size in (8, 16, 32):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, 512, size, size, device=device, dtype=dtype).contiguous(memory_format=layout)
            weight = torch.randn(512, 512, 3, 3, device=device, dtype=dtype).contiguous(memory_format=layout)
            seconds = _best(partial(F.conv2d, x, weight, padding=1), device)
            found["conv_gflops"] = max(found["conv_gflops"], 2 * x.numel() * 512 * 9 / seconds / 1e9)
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    found["matmul_gflops"] = 2 * 2048**3 / _best(lambda: a @ a, device) / 1e9
    source, target = torch.empty(2**26, device=device), torch.empty(2**26, device=device)
    found["copy_gb_s"] = 2 * 4 * 2**26 / _best(lambda: target.copy_(source), device) / 1e9
    return found


def _best(function: Callable[[], Any], device: str, repeats: int = 5) -> float:
    function()
    return min(timed(function, device=device) for _ in range(repeats))


def machine(device: str) -> dict[str, Any]:
    """The kind of machine and PyTorch."""
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    return {"device": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def peak_bytes(name: str, case: tuple[int, int, int, Spec, str]) -> int:
    """Most memory that one step of every phase took beside the process without networks."""
    if case[-1].startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return _peak_on_cuda(name, case)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_on_cpu, (name, case))


def _peak_on_cuda(name: str, case: tuple[int, int, int, Spec, str]) -> int:
    _every_phase(name, case)
    return torch.cuda.max_memory_allocated()


def _peak_on_cpu(name: str, case: tuple[int, int, int, Spec, str]) -> int:
    before = _most_resident_bytes()
    _every_phase(name, case)
    return _most_resident_bytes() - before


def _most_resident_bytes() -> int:
    """Of this process alone; ``resource.getrusage`` would count the parent it was started from."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _every_phase(name: str, case: tuple[int, int, int, Spec, str]) -> None:
    res, batch, channels, _, device = case
    steps, real = IMPLEMENTATIONS[name](*case), torch.zeros(batch, channels, res, res, device=device)
    for phase in PHASES:
        getattr(steps, phase)(real)


def report(figures: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The figures as lines: per phase the minimum (median) seconds of each, and ours against the roof."""
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
