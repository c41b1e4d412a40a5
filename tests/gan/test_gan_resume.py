"""Exact resume: N + N steps are 2 N bit for bit, in every number a training goes on from, and after any SIGKILL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.gan_trainings import TINY, contents, noise_images, tiny_settings
from torch import Tensor

from common.seeds import derive_seed
from gan.augment import augment
from gan.batches import Batches
from gan.settings import GanConfig, GanSettings
from gan.training import CHECKPOINT, Training

# 5 images in batches of 2: epochs end within a batch and within each half; both regularisations fall into both halves
CONFIG = GanConfig(**{**TINY.__dict__, "mirror": True, "r1_interval": 3, "path_length_interval": 2, "n_snapshots": 3})


def settings(n_steps: int = 16) -> GanSettings:
    return tiny_settings(n_steps=n_steps, config=CONFIG)


def begin() -> Training:
    return Training(Batches(noise_images(), settings(), 3), settings(), 3, torch.device("cpu"))


def advance(run: Training, n_steps: int) -> list[Tensor]:
    """What the discriminator saw of the real images and of the fakes, in order: data, mirroring and augmentation."""
    seen: list[Tensor] = []
    hook = run.train_step.discriminator.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach().clone())
    )
    for _ in range(n_steps):
        run.advance()
    hook.remove()
    return seen


@pytest.mark.parametrize("n_steps", [4, 7])
def test_n_and_n_steps_equal_2_n_in_what_is_seen_and_in_all_that_is_kept(tmp_path: Path, n_steps: int) -> None:
    whole, first, second = begin(), begin(), begin()
    seen = advance(whole, 2 * n_steps)
    seen_in_parts = advance(first, n_steps)
    first._save(tmp_path)
    torch.manual_seed(99)  # a new process has another global generator
    second.resume(tmp_path)
    assert second.step == n_steps
    seen_in_parts += advance(second, n_steps)
    assert len(seen) == len(seen_in_parts) > 6 * n_steps
    assert all(torch.equal(one, other) for one, other in zip(seen, seen_in_parts, strict=True))
    expected, resumed = whole.train_step.tensors(), second.train_step.tensors()
    assert expected.keys() == resumed.keys()
    different = [name for name in expected if not torch.equal(expected[name], resumed[name])]
    assert not different and whole.rows == second.rows and whole.measured == second.measured
    kinds = {".".join(name.split(".")[:2]) if ".adam." in name else name.split(".")[0] for name in expected}
    assert kinds >= {"generator.adam", "discriminator.adam", "average", "generator", "discriminator"}
    steps = {name: tensor.item() for name, tensor in expected.items() if name.endswith("adam.0.step")}
    n_path_lengths, n_r1 = -(-2 * n_steps // 2), -(-2 * n_steps // 3)
    assert steps == {
        "generator.adam.0.step": 2 * n_steps + n_path_lengths,
        "discriminator.adam.0.step": 2 * n_steps + n_r1,
    }


def test_augmentation_is_drawn_for_each_step_and_purpose_alone() -> None:
    """No two batches share numbers, and none depend on what was drawn before them."""
    images, run = torch.ones(2, 1, 10, 16), begin()
    shown = set()
    for step in range(6):
        run.step = step
        for purpose in ("generator", "path length", "discriminator", "r1"):
            draws = torch.Generator().manual_seed(derive_seed(3, step, purpose))
            augmented = augment(images, ("color",), run._draws(purpose))
            assert torch.equal(augmented, augment(images, ("color",), draws))
            shown.add(augmented.numpy().tobytes())
    assert len(shown) == 24


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_gan_resume as tests
import gan.train_step
from gan.train import train

folder, left = Path(sys.argv[1]), [0]
train(tests.noise_images(), Path(sys.argv[2]), tests.settings(4), seed=3)

def dies_before(owner, name):
    function = getattr(owner, name)
    def counted(*arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    setattr(owner, name, counted)

dies_before(Path, "replace")  # every file that is written ends with it
dies_before(gan.train_step.TrainStep, "discriminator_main")  # the generator has moved, the discriminator not yet
for n_events in range(1, 200):
    child = os.fork()
    if child == 0:
        left[0] = n_events
        train(tests.noise_images(), folder, tests.settings(4), seed=3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(n_events if status == 0 else 255)
sys.exit(254)
"""


def test_a_training_killed_before_every_file_and_within_steps_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """One process after another goes on and is killed one event later than the last, until one comes to the end."""
    script = KILLED.format(paths=[str(folder) for folder in Path(__file__).parents[:3]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), str(tmp_path / "whole")]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert 8 <= ended.returncode < 200, ended.stderr[-2000:]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not (tmp_path / "killed" / CHECKPOINT).exists()
