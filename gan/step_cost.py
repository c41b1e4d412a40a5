"""Seconds, work and memory of the phases of a training step, and the roofs of the machine, for ``gan.benchmark``.

``build`` makes our networks, ``build_textbook`` the same ones computed as the papers write them (``gan.textbook``),
``build_private`` those with differential privacy; any other implementation of ``Steps`` can be set beside them.
"""

from __future__ import annotations

import multiprocessing
import statistics
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

from common.plan import square_plan
from common.settings import from_dict
from gan.augment import n_numbers
from gan.privacy import Mechanism
from gan.private_batches import UnitImages
from gan.secret import Secret
from gan.settings import GanConfig, derive_settings
from gan.textbook import as_textbook
from gan.train_step import PrivateReals, TrainStep
from training.timing import interleaved_seconds

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


Case = tuple[int, int, int, Spec, str]  # arguments of ``build``


class Steps:
    """The phases of one implementation, each with its optimiser step, on random numbers of its own."""

    def __init__(self, train_step: TrainStep) -> None:
        self.train_step = train_step
        self.draws = torch.Generator().manual_seed(0)
        self.n_parameters = {
            "generator": sum(p.numel() for p in train_step.generator.parameters()),
            "discriminator": sum(p.numel() for p in train_step.discriminator.parameters()),
        }

    def gmain(self, real: Tensor) -> None:
        """Generator loss; ``real`` (b, channels, res, res) in [-1, 1] is not used."""
        self.train_step.generator_main(self.draws)

    def greg(self, real: Tensor) -> None:
        """Path length; ``real`` is not used."""
        self.train_step.path_length(self.draws)

    def dmain(self, real: Tensor) -> None:
        """Discriminator loss."""
        self.train_step.discriminator_main(real, self.draws)

    def dreg(self, real: Tensor) -> None:
        """R1."""
        self.train_step.r1(real, self.draws)

    def ema(self) -> None:
        """Average of the generator's weights."""
        self.train_step.average_weights()


class PrivateSteps(Steps):
    """The same with differential privacy: the discriminator's two phases are others."""

    def dmain(self, real: Tensor) -> None:
        """Discriminator loss, every real image's gradient by itself."""
        mechanism = Mechanism(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, delta=1e-5, n_expected=len(real))
        numbers = torch.rand(len(real), n_numbers(self.train_step.settings.config.augment))
        units = [UnitImages(image[None], own[None]) for image, own in zip(real, numbers, strict=True)]
        reals = PrivateReals(mechanism, units, Secret.new().stream("noise"))
        self.train_step.private_discriminator_main(reals, self.draws)

    def dreg(self, real: Tensor) -> None:
        """R2; ``real`` is not used."""
        self.train_step.r2(self.draws)


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
    settings = derive_settings(square_plan(res), 2, channels, 1.0, config)
    return Steps(TrainStep(settings, 0, torch.device(device)))


def build_textbook(res: int, batch: int, channels: int, spec: Spec | Mapping[str, Any], device: str) -> Steps:
    """The same networks and weights, every operation as the papers write it, in fp32."""
    steps = build(res, batch, channels, spec, device)
    for network in steps.train_step.modules().values():
        as_textbook(network)
    return steps


def build_private(res: int, batch: int, channels: int, spec: Spec | Mapping[str, Any], device: str) -> Steps:
    """The same networks, trained with differential privacy; no deviation over a minibatch then."""
    spec = spec if isinstance(spec, Spec) else from_dict(Spec, spec)
    return PrivateSteps(build(res, batch, channels, replace(spec, mbstd=1), device).train_step)


IMPLEMENTATIONS: Mapping[str, Callable[..., Steps]] = {
    "ours": build,
    "textbook": build_textbook,
    "private": build_private,
}


def measure(case: Case, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Seconds of every phase, all implementations in turn before the next repetition, and the work it is."""
    steps = {name: IMPLEMENTATIONS[name](*case) for name in names}
    real = _random_images(case)
    gflop = {}
    for phase in PHASES:
        with _FlopCounter() as counter:
            getattr(steps["ours"], phase)(real)
        gflop[phase] = counter.n_flops / 1e9
    works: dict[tuple[str, str], Callable[[], object]] = {
        (name, phase): partial(getattr(steps[name], phase), real) for phase in PHASES for name in names
    }
    works |= {(name, "ema"): steps[name].ema for name in names}
    seconds = interleaved_seconds(works, repeats, case[-1])
    figures: dict[str, Any] = {"gflop": gflop, "n_parameters": steps["ours"].n_parameters}
    for figure, reduce in (("min_s", min), ("median_s", statistics.median)):
        figures[figure] = {name: {phase: reduce(seconds[name, phase]) for phase in INTERVALS} for name in names}
        for of_phase in figures[figure].values():
            of_phase["iteration"] = sum(of_phase[phase] / interval for phase, interval in INTERVALS.items())
    return figures


def _random_images(case: Case) -> Tensor:
    res, batch, channels, _, device = case
    return torch.rand(batch, channels, res, res, device=device) * 2 - 1


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


def roofs(device: str, batch: int, precision: str) -> dict[str, float]:
    """What the machine can do: GFLOP/s of the best 3x3 convolution of 512 channels, and of a matrix product; GB/s."""

    def best_seconds(work: Callable[[], object]) -> float:
        return min(interleaved_seconds({"work": work}, 5, device)["work"])

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    found = {"conv_gflops": 0.0}
    for size in (8, 16, 32):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, 512, size, size, device=device, dtype=dtype).contiguous(memory_format=layout)
            weight = torch.randn(512, 512, 3, 3, device=device, dtype=dtype).contiguous(memory_format=layout)
            seconds = best_seconds(partial(F.conv2d, x, weight, padding=1))
            found["conv_gflops"] = max(found["conv_gflops"], 2 * x.numel() * 512 * 9 / seconds / 1e9)
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    found["matmul_gflops"] = 2 * 2048**3 / best_seconds(lambda: a @ a) / 1e9
    source, target = torch.empty(2**26, device=device), torch.empty(2**26, device=device)
    found["copy_gb_s"] = 2 * 4 * 2**26 / best_seconds(lambda: target.copy_(source)) / 1e9
    return found


def machine(device: str) -> dict[str, Any]:
    """The kind of machine and PyTorch."""
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    return {"device": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def peak_bytes(name: str, case: Case) -> int:
    """Most memory that one step of every phase took beside the process without networks."""
    if case[-1].startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        _every_phase(name, case)
        return torch.cuda.max_memory_allocated()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_every_phase, (name, case))


def _every_phase(name: str, case: Case) -> int:
    """Run every phase once; returns by how many bytes the process's largest memory grew."""
    before = _most_resident_bytes()
    steps, real = IMPLEMENTATIONS[name](*case), _random_images(case)
    for phase in PHASES:
        getattr(steps, phase)(real)
    return _most_resident_bytes() - before


def _most_resident_bytes() -> int:
    """Of this process alone; ``resource.getrusage`` would count the parent it was started from."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
