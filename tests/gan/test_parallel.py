"""A step of several processes is that of one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoints import load_tensors
from common.errors import InputError
from common.plan import Plan
from gan.settings import GanConfig, GanSettings, derive_settings
from gan.train import check_processes, n_processes_for, train
from gan.train_step import TrainStep
from gan.training import CHECKPOINT, RESULT, Training
from training.alarms import ALARMS, TrainingFailedError
from training.batch_shard import BatchShard
from training.curves import EVENTS
from training.distributed import RENDEZVOUS, run_distributed

CONFIG = GanConfig(batch_size=8, channel_base=256, channel_max=16, z_dim=8, w_dim=8, minibatch_std_group=4)


def settings() -> GanSettings:
    scheme = ("ZScoreNormalization",)
    plan = Plan((16, 16), ((1, 1), (2, 2), (2, 2)), ((3, 3),) * 3, (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)
    return derive_settings(plan, 8, 1, None, CONFIG)


def gradients(shard: BatchShard, device: str) -> dict[str, torch.Tensor]:
    """Of every phase's first step, before an optimiser has turned rounding into signs; one vector a phase."""
    torch.set_num_threads(1)
    phases = TrainStep(settings(), 3, torch.device(device), shard)
    seen: list[torch.Tensor] = []
    for optimizer in phases.optimizers.values():
        parameters = optimizer.param_groups[0]["params"]
        optimizer.step = lambda of=parameters: seen.append(_flat([p.grad for p in of if p.grad is not None]))
    reals = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found: dict[str, torch.Tensor] = {}
    for name, phase in (
        ("generator_main", phases.generator_main),
        ("path_length", phases.path_length),
        ("discriminator_main", lambda draws: phases.discriminator_main(reals, draws)),
        ("r1", lambda draws: phases.r1(reals, draws)),
    ):
        found |= phase(torch.Generator().manual_seed(5))
        found[f"gradient of {name}"] = seen[-1]
    return found


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_processes_with_a_share_of_the_batch_make_the_step_of_one(tmp_path: Path) -> None:
    """Gradients of all four phases, the second-order ones too, within 1e-5; minibatch-deviation groups stay whole."""
    alone = gradients(BatchShard(), "cpu")
    together = run_distributed(2, tmp_path, "cpu", gradients, gradients)
    assert set(alone) == set(together) and len(alone) == 10
    for key, expected in alone.items():
        error = (together[key] - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error < 1e-5, f"{key}: {error}"
    assert not list(tmp_path.glob(f".*.{RENDEZVOUS}"))


def fails(shard: BatchShard, device: str) -> None:
    raise ValueError("no memory left")


def is_killed(shard: BatchShard, device: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waits_for_ever(shard: BatchShard, device: str) -> None:
    shard.barrier()


@pytest.mark.parametrize("follow,named", [(fails, "ValueError: no memory left"), (is_killed, "exit code -9")])
def test_a_follower_that_ends_ends_the_leader_which_says_why(
    tmp_path: Path, follow: Callable[..., None], named: str
) -> None:
    with pytest.raises(RuntimeError, match=f"process 1 of a training of 2 .*{named}"):
        run_distributed(2, tmp_path, "cpu", lambda shard, _: shard.mean(torch.zeros(())), follow)
    assert not any(tmp_path.iterdir())


def test_a_leader_that_raises_keeps_its_error_and_ends_its_followers(tmp_path: Path) -> None:
    def lead(shard: BatchShard, device: str) -> None:
        raise InputError("of the leader", where="here", fix="nothing")

    with pytest.raises(InputError, match="of the leader"):
        run_distributed(2, tmp_path, "cpu", lead, waits_for_ever)
    assert not multiprocessing.active_children() and not any(tmp_path.iterdir())


@pytest.mark.parametrize("n_processes,named", [(3, "8 images"), (4, "groups of 4")])
def test_shares_that_split_a_group_are_refused(n_processes: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_processes(settings(), n_processes)
    check_processes(settings(), 2)


@pytest.mark.parametrize(
    "batch_size,n_devices,expected", [(8, 0, 1), (8, 1, 1), (8, 2, 2), (8, 8, 2), (16, 3, 2), (32, 7, 4), (6, 4, 1)]
)
def test_as_many_processes_as_can_share_the_batch(batch_size: int, n_devices: int, expected: int) -> None:
    """A batch of 6 has no whole groups of 4 at all: one process computes what it always did."""
    config = replace(CONFIG, batch_size=batch_size)
    assert n_processes_for(replace(settings(), config=config), n_devices) == expected


def training_settings(**changes: object) -> GanSettings:
    """Six steps, a snapshot after every second."""
    config = replace(CONFIG, n_snapshots=3, **changes)
    return replace(settings(), n_steps=6, kimg=0.048, ema_kimg=0.01, config=config)


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (12, 1, 16, 16), dtype=np.uint8)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if EVENTS not in path.parts)


def check_same_result(one: Path, other: Path) -> None:
    """Every tensor within 1e-4; in six steps weights move by more than 1e-3, and those of another seed by 1."""
    assert files(one) == files(other)
    expected, tensors = load_tensors(one / RESULT)[0], load_tensors(other / RESULT)[0]
    for name, tensor in expected.items():
        assert (tensors[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def test_two_processes_killed_in_between_leave_nobody_behind_and_end_as_one_would(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:3]]!r}
from pathlib import Path
from test_parallel import images, training_settings
import gan.train
import gan.training
save = gan.training.save_tensors
def save_or_die(path, tensors, metadata):
    if metadata["step"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, tensors, metadata)
gan.training.save_tensors = save_or_die
gan.train.train(images(), Path({str(tmp_path / "killed")!r}), training_settings(), 3, n_processes=2)
"""
    # returns when the last process that holds the pipe of its output has ended: the follower does
    killed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL and list((tmp_path / "killed").glob(f".*.{RENDEZVOUS}"))
    assert load_tensors(tmp_path / "killed" / CHECKPOINT)[1]["step"] == 2
    train(images(), tmp_path / "killed", training_settings(), 3, n_processes=2)
    train(images(), tmp_path / "alone", training_settings(), 3)
    check_same_result(tmp_path / "alone", tmp_path / "killed")


def test_after_a_failure_only_the_leader_sees_all_go_on_from_the_same_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Training.snapshot

    def snapshot(self: Training, out: Path) -> None:
        if self.attempt == 0 and self.step == 4:
            raise TrainingFailedError("mode collapse", "all alike")
        plain(self, out)

    monkeypatch.setattr(Training, "snapshot", snapshot)
    for name, n_processes in (("alone", 1), ("together", 2)):
        train(images(), tmp_path / name, training_settings(), 3, n_processes=n_processes)
        assert json.loads((tmp_path / name / ALARMS).read_text())["back_to"] == 0.016
    check_same_result(tmp_path / "alone", tmp_path / "together")


def test_a_divergence_is_seen_by_all_and_they_give_up_together(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"diverged at step .*attempt 3 of 3"):
        train(images(), tmp_path, training_settings(learning_rate=1e4), 3, n_processes=2)
    assert not multiprocessing.active_children() and not list(tmp_path.glob(".*"))
