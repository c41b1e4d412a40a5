"""A step of several processes is that of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.plan import Plan
from gan.parallel import Share, check_shares, run_together
from gan.phases import Phases
from gan.settings import GanConfig, GanSettings, derive_settings

CONFIG = GanConfig(batch_size=8, channel_base=256, channel_max=16, z_dim=8, w_dim=8, minibatch_std_group=4)


def settings() -> GanSettings:
    scheme = ("ZScoreNormalization",)
    plan = Plan((16, 16), ((1, 1), (2, 2), (2, 2)), ((3, 3),) * 3, (1.0, 1.0), (0, 1, 2), scheme, (False,), ({},), 2)
    return derive_settings(plan, 8, 1, None, CONFIG)


def gradients(share: Share, device: str) -> dict[str, torch.Tensor]:
    """Of every phase's first step, before an optimiser has turned rounding into signs; one vector a phase."""
    torch.set_num_threads(1)
    phases = Phases(settings(), 3, torch.device(device), share)
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
    alone = gradients(Share(), "cpu")
    together = run_together(2, tmp_path / "rendezvous", "cpu", gradients)
    assert set(alone) == set(together) and len(alone) == 10
    for key, expected in alone.items():
        error = (together[key] - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error < 1e-5, f"{key}: {error}"
    assert not (tmp_path / "rendezvous").exists()


def fails_in_the_second(share: Share, device: str) -> None:
    if share.rank == 1:
        raise ValueError("no memory left")
    share.mean(torch.zeros(()))


def test_a_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run_together(2, tmp_path / "rendezvous", "cpu", fails_in_the_second)


@pytest.mark.parametrize("n_processes,named", [(3, "8 images"), (4, "groups of 4")])
def test_shares_that_split_a_group_are_refused(n_processes: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_shares(settings(), n_processes)
    check_shares(settings(), 2)
