"""Training and sampling: resume bit for bit, seeds, bad input, and that something is learned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.gan_trainings import TINY, Stop, contents, noise_images, plan_of, stop_after, tiny_settings

from common.checkpoints import load_tensors
from common.errors import InputError
from gan.batches import Batches
from gan.model import Discriminator, GeneratorNetwork
from gan.pictures import INTERPOLATION
from gan.sample import sample
from gan.settings import GanConfig, derive_settings
from gan.train import train
from gan.train_step import TrainStep
from gan.training import CHECKPOINT, RESULT, Training
from training.curves import CURVES
from training.pictures import SHEET, images_to_integers

SHEETS_OF_16_STEPS = [f"sheets/kimg_000000.{images:03d}.png" for images in (8, 16, 24, 32)]
ALL_FILES = sorted([RESULT, CURVES, SHEET, INTERPOLATION, *SHEETS_OF_16_STEPS])


@pytest.mark.parametrize("n_steps", [3, 11])
def test_an_interrupted_training_ends_with_the_same_bytes_as_an_undisturbed_one(tmp_path: Path, n_steps: int) -> None:
    """D18: nothing of the original could be resumed. Curves and sheets count, not only weights."""
    config = GanConfig(**{**TINY.__dict__, "mirror": True})
    train(noise_images(), tmp_path / "whole", tiny_settings(config=config), seed=3)
    with pytest.raises(Stop):
        train(noise_images(), tmp_path / "parts", tiny_settings(config=config), 3, progress=stop_after(n_steps))
    train(noise_images(), tmp_path / "parts", tiny_settings(config=config), seed=3)
    assert sorted(contents(tmp_path / "whole")) == ALL_FILES
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_a_killed_training_resumes_and_leaves_no_other_files(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:3]]!r}
from pathlib import Path
from support.gan_trainings import noise_images, tiny_settings
import gan.train
import gan.training
saves, save = [], gan.training.save_tensors
def save_then_die(path, tensors, metadata):
    saves.append(path)
    if len(saves) == 2:
        path.with_name(".half." + path.name).write_bytes(b"half a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, tensors, metadata)
gan.training.save_tensors = save_then_die
gan.train.train(noise_images(), Path({str(tmp_path / "killed")!r}), tiny_settings(), seed=3)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "killed" / CHECKPOINT).is_file()
    # curves and sheet are already those of step 8
    assert load_tensors(tmp_path / "killed" / CHECKPOINT)[1]["step"] == 4
    train(noise_images(), tmp_path / "killed", tiny_settings(), seed=3)
    train(noise_images(), tmp_path / "whole", tiny_settings(), seed=3)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_training_for_other_settings_or_another_seed_does_not_reuse_what_is_there(tmp_path: Path) -> None:
    train(noise_images(), tmp_path, tiny_settings(n_steps=4), seed=3)
    before = contents(tmp_path)
    train(noise_images(), tmp_path, tiny_settings(n_steps=4), seed=3)
    assert contents(tmp_path) == before
    for other, seed in ((tiny_settings(n_steps=6), 3), (tiny_settings(n_steps=4), 4)):
        with pytest.raises(InputError, match=RESULT):
            train(noise_images(), tmp_path, other, seed=seed)


def test_training_leaves_the_global_generator_and_the_settings_as_they_were(tmp_path: Path) -> None:
    """D21: building a discriminator deleted keys of its caller's configuration."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    derived = tiny_settings(n_steps=1)
    train(noise_images(), tmp_path, derived, seed=3)
    assert torch.equal(torch.rand(3), expected) and derived == tiny_settings(n_steps=1)


def test_curves_hold_every_number_and_count_in_kimg(tmp_path: Path) -> None:
    train(noise_images(), tmp_path, tiny_settings(), seed=3)
    rows = [json.loads(line) for line in (tmp_path / CURVES).read_text().splitlines()]
    assert [row["step"] for row in rows] == pytest.approx([0.002 * step for step in range(1, 17)])
    numbers = {"loss_g", "loss_d", "r1", "path_length", "real_logit", "fake_logit"}
    for row in rows:
        assert list(row)[:2] == ["step", "unit"] and row["unit"] == "kimg" and set(row) == numbers | {"step", "unit"}


def test_every_image_is_shown_once_an_epoch_whatever_the_batch(tmp_path: Path) -> None:
    images = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None] * 50, (5, 1, 10, 16))
    batches = Batches(images, tiny_settings(), 3)
    shown = []
    for step in range(10):
        shown += ((batches.at(step)[:, 0, 0, 0] + 1) * 127.5 / 50).round().int().tolist()
    assert all(sorted(shown[start : start + 5]) == [0, 1, 2, 3, 4] for start in (0, 5, 10, 15))
    assert shown[:5] != shown[5:10]


def test_lazy_regularisation_corrects_learning_rate_and_betas() -> None:
    optimizers = TrainStep(tiny_settings(), 3, torch.device("cpu")).optimizers
    for name, interval in (("generator", 4), ("discriminator", 16)):
        group = optimizers[name].param_groups[0]
        correction = interval / (interval + 1)
        assert group["lr"] == pytest.approx(0.002 * correction)
        assert group["betas"] == pytest.approx((0.0, 0.99**correction)) and group["eps"] == 1e-8


def test_weight_average_halves_its_distance_in_its_half_life() -> None:
    config = GanConfig(**{**TINY.__dict__, "ema_kimg": 0.01})
    run = TrainStep(tiny_settings(config=config), 3, torch.device("cpu"))
    for parameter in run.generator.parameters():
        parameter.data = torch.ones_like(parameter)
    for parameter in run.average.parameters():
        parameter.data = torch.zeros_like(parameter)
    for _ in range(5):  # 10 images of a half-life of 10 images
        run.average_weights()
    assert torch.allclose(run.average.constant, torch.full_like(run.average.constant, 0.5), atol=1e-5)


def test_gradients_that_are_not_finite_are_replaced_before_a_step() -> None:
    run = TrainStep(tiny_settings(), 3, torch.device("cpu"))
    bias = run.discriminator.bias
    weights = torch.full_like(bias, torch.inf)
    weights[0], weights[1] = torch.nan, -torch.inf
    run._descend("discriminator", (bias * weights).sum())
    assert bias[0] == 0 and bias[1] > 0 and bool((bias[2:] < 0).all()) and torch.isfinite(bias).all()


def test_divergence_is_an_error_that_names_the_step_and_what_to_try(tmp_path: Path) -> None:
    run = Training(Batches(noise_images(), tiny_settings(), 3), tiny_settings(), 3, torch.device("cpu"))
    run.advance()
    run.train_step.generator.constant.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=r"step 2 .*learning_rate"):
        run.advance()


@pytest.mark.parametrize(
    "images,named",
    [
        (np.zeros((5, 1, 10, 16), np.uint8), "different"),
        (noise_images(n_images=1), "1 different"),
        (noise_images()[..., :8], "10, 8"),
        (noise_images(2), r"2, 10, 16"),
        (noise_images().astype(np.float32), "float32"),
    ],
)
def test_images_no_training_can_use_are_refused(tmp_path: Path, images: np.ndarray, named: str) -> None:
    with pytest.raises(InputError, match=named):
        train(images, tmp_path, tiny_settings(), seed=3)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("n_channels,dtype", [(1, np.uint8), (3, np.uint8), (2, np.uint16)])
def test_an_image_depends_on_its_seed_and_on_no_batch(tmp_path: Path, n_channels: int, dtype: type) -> None:
    """D34: the original used latents 0..n-1 and one set of noise maps everywhere."""
    np.save(tmp_path / "images.npy", noise_images(n_channels, dtype))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    train(images, tmp_path / "run", tiny_settings(n_channels, n_steps=6), seed=3)
    seeds = [2**62 + 7, 1, 2, 3, 4, 1]
    together = sample(tmp_path / "run" / RESULT, seeds)
    apart = sample(tmp_path / "run" / RESULT, seeds, batch_size=1)
    reversed_ = sample(tmp_path / "run" / RESULT, seeds[::-1], batch_size=4)[::-1]
    assert together.shape == (6, n_channels, 10, 16) and together.dtype == dtype
    one_grey_level = np.iinfo(dtype).max / 255
    for other in (apart, reversed_):
        assert np.abs(together.astype(float) - other).max() <= one_grey_level
    assert np.array_equal(apart[1], apart[5])
    assert len({image.tobytes() for image in together[:5]}) == 5
    assert sample(tmp_path / "run" / RESULT, []).shape == (0, n_channels, 10, 16)


def test_noise_maps_follow_the_seed_too(tmp_path: Path) -> None:
    """D34: with the latent's weight at zero and noise turned on, two seeds still give two images."""
    train(noise_images(), tmp_path, tiny_settings(n_steps=1), seed=3)
    tensors, metadata = load_tensors(tmp_path / RESULT)
    for name in tensors:
        if name.endswith("affine.weight"):
            tensors[name].zero_()
        if name.endswith("noise_strength"):
            tensors[name].fill_(1.0)
    from common.checkpoints import save_tensors

    save_tensors(tmp_path / "noisy.safetensors", tensors, metadata)
    first, second = sample(tmp_path / "noisy.safetensors", [1, 2])
    assert not np.array_equal(first, second)


def test_integers_cover_their_range_and_clip() -> None:
    values = torch.tensor([-1.2, -1.0, 0.0, 1.0, 3.0])
    assert images_to_integers(values, np.dtype(np.uint8)).tolist() == [0, 0, 128, 255, 255]
    assert images_to_integers(values, np.dtype(np.uint16)).tolist() == [0, 0, 32768, 65535, 65535]


def two_blobs(n_images: int = 16) -> np.ndarray:
    """Two bright blobs left and right of the middle, jittered: their mean has structure."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    images = np.full((n_images, 1, 16, 16), 20.0)
    for image in images:
        for column in (4, 11):
            centre = (8 + rng.uniform(-1, 1), column + rng.uniform(-1, 1))
            image[0] += 200 * np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 6)
    return np.clip(images, 0, 255).astype(np.uint8)


def test_training_brings_the_mean_image_closer_to_that_of_the_data(tmp_path: Path) -> None:
    images = two_blobs()
    config = GanConfig(8, 256, 16, 16, 16, learning_rate=0.005, r1_gamma=1.0, augment=("translation",), n_snapshots=1)
    plan = plan_of((16, 16), [(2, 2), (2, 2)])
    distances = []
    for n_steps in (1, 120):
        train(images, tmp_path / str(n_steps), derive_settings(plan, 16, 1, n_steps * 8 / 1000, config), seed=1)
        fakes = sample(tmp_path / str(n_steps) / RESULT, range(64))
        distances.append(float(np.abs(fakes.mean(axis=0) - images.mean(axis=0)).mean()))
    assert distances[1] < 0.5 * distances[0], distances


def test_a_discriminator_alone_tells_blobs_from_noise() -> None:
    """A small width must still learn: one network, a hundred steps, logits on the right sides."""
    torch.manual_seed(0)
    derived = derive_settings(
        plan_of((16, 16), [(2, 2), (2, 2)]), 16, 1, 1.0, GanConfig(channel_base=128, channel_max=8)
    )
    discriminator = Discriminator(derived)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.005, betas=(0.0, 0.99))
    reals = torch.from_numpy(two_blobs()).float() / 127.5 - 1
    fakes = GeneratorNetwork(derived)(
        torch.randn(16, 512), [torch.randn(16, 1, s, s) for s in (4, 8, 8, 16, 16)]
    ).detach()
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.softplus(torch.cat([discriminator(fakes), -discriminator(reals)])).mean()
        loss.backward()
        optimizer.step()
    assert discriminator(reals).min() > 0 > discriminator(fakes).max()
