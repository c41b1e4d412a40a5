"""A step of several processes is that of one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.plan import Plan
from gan.parallel import Share, check_shares, n_processes_for
from gan.phases import Phases
from gan.settings import GanConfig, GanSettings, derive_settings
from gan.together import run_together

CONFIG = GanConfig(batch_size=8, channel_base=256, channel_max=16, z_dim=8, w_dim=8, minibatch_std_group=4)


def settings() -> GanSettings:
    scheme = ("ZScoreNormalization",)
    plan = Plan((16, 16), ((1, 1), (2, 2), (2, 2)), ((3, 3),) * 3, (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)
    return derive_settings(plan, 8, 1, None, CONFIG)


def gradients(share: Share, device: str) -> dict[str, torch.Tensor]:
    """Of every phase's first step, before an optimiser has turned rounding into signs; one vector a phase."""
    torch.set_num_threads(1)
    phases = Phases(settings(), 3, torch.device(device), share)
    for optimizer in phases.optimizers.values():
        optimizer.step = lambda: None
    reals = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found: dict[str, torch.Tensor] = {}
    for name, phase, network in (
        ("generator_main", phases.generator_main, phases.generator),
        ("path_length", phases.path_length, phases.generator),
        ("discriminator_main", lambda draws: phases.discriminator_main(reals, draws), phases.discriminator),
        ("r1", lambda draws: phases.r1(reals, draws), phases.discriminator),
    ):
        found |= phase(torch.Generator().manual_seed(5))
        found[f"gradient of {name}"] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return found


def test_processes_with_a_share_of_the_batch_make_the_step_of_one(tmp_path: Path) -> None:
    """Gradients of all four phases, the second-order ones too, within 1e-5; minibatch-deviation groups stay whole."""
    alone = gradients(Share(), "cpu")
    together = run_together(2, tmp_path / "rendezvous", "cpu", gradients, gradients)
    assert set(alone) == set(together) and len(alone) == 10
    for key, expected in alone.items():
        error = (together[key] - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error < 1e-5, f"{key}: {error}"
    assert not (tmp_path / "rendezvous").exists()


def fails(share: Share, device: str) -> None:
    raise ValueError("no memory left")


def is_killed(share: Share, device: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waits_for_ever(share: Share, device: str) -> None:
    share.meet()


@pytest.mark.parametrize("follow,named", [(fails, "ValueError: no memory left"), (is_killed, "exit code -9")])
def test_a_follower_that_ends_ends_the_leader_which_says_why(
    tmp_path: Path, follow: Callable[..., None], named: str
) -> None:
    with pytest.raises(RuntimeError, match=f"process 1 of a training of 2 .*{named}"):
        run_together(2, tmp_path / "rendezvous", "cpu", lambda share, _: share.mean(torch.zeros(())), follow)
    assert not any(tmp_path.iterdir())


def test_a_leader_that_raises_keeps_its_error_and_ends_its_followers(tmp_path: Path) -> None:
    def lead(share: Share, device: str) -> None:
        raise InputError("of the leader", where="here", fix="nothing")

    with pytest.raises(InputError, match="of the leader"):
        run_together(2, tmp_path / "rendezvous", "cpu", lead, waits_for_ever)
    assert not multiprocessing.active_children() and not any(tmp_path.iterdir())


@pytest.mark.parametrize("n_processes,named", [(3, "8 images"), (4, "groups of 4")])
def test_shares_that_split_a_group_are_refused(n_processes: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_shares(settings(), n_processes)
    check_shares(settings(), 2)


@pytest.mark.parametrize(
    "batch_size,n_devices,expected", [(8, 0, 1), (8, 1, 1), (8, 2, 2), (8, 8, 2), (16, 3, 2), (32, 7, 4), (6, 4, 1)]
)
def test_as_many_processes_as_can_share_the_batch(batch_size: int, n_devices: int, expected: int) -> None:
    """A batch of 6 has no whole groups of 4 at all: one process computes what it always did."""
    config = replace(CONFIG, batch_size=batch_size)
    assert n_processes_for(replace(settings(), config=config), n_devices) == expected
