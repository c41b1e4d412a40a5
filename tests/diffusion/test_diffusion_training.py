"""Trainings of both networks: exact resume, parts and processes that add up to a batch, and what is kept on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.diffusion_models import tiny_settings

from common.checkpoints import load_tensors
from common.errors import InputError
from diffusion.autoencoder_training import AutoencoderTraining, latent_statistics, load_trained
from diffusion.batch_sampler import BatchSampler
from diffusion.data import ImageData, channels_as_labels, labels_as_channels
from diffusion.denoiser_training import DenoiserTraining
from diffusion.model import open_model
from diffusion.sample import sample, sample_with_labels
from diffusion.settings import DiffusionSettings
from diffusion.train import AUTOENCODER_FOLDER, train

IMAGES = np.random.default_rng(0).integers(0, 255, (6, 1, 16, 16), dtype=np.uint8)
TIMED = ("card.json", "card.md")


class StoppedError(Exception):
    """Stands for the death of the process."""


def data_of(settings: DiffusionSettings, seed: int = 1) -> ImageData:
    images = np.repeat(IMAGES, settings.n_channels, axis=1)
    labels = (IMAGES[:, 0] > 128).astype(np.uint8) if settings.n_label_channels else None
    return ImageData(images, settings, seed, labels)


def discs(n_images: int) -> np.ndarray:
    """Bright discs on a dark ground, anywhere."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    masks = [np.hypot(rows - rng.integers(4, 12), columns - rng.integers(4, 12)) < 4 for _ in range(n_images)]
    return np.where(np.stack(masks)[:, None], 220, 30).astype(np.uint8)


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMED]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("in_latents", [False, True])
@pytest.mark.parametrize("stop_at_kimg", [0.024, 0.06])
def test_a_training_killed_anywhere_and_resumed_ends_as_an_undisturbed_one(
    in_latents: bool, stop_at_kimg: float, tmp_path: Path
) -> None:
    """Defect 8. In latents the first stop is in the autoencoder's second epoch, the second in the denoiser's."""
    settings = tiny_settings(in_latents=in_latents)
    data = data_of(settings)
    if not in_latents:
        stop_at_kimg = 0.028

    def stop(done: float, total: float, unit: str) -> None:
        if done >= stop_at_kimg:
            raise StoppedError

    train(data, tmp_path / "whole", settings, 1)
    with pytest.raises(StoppedError):
        train(data, tmp_path / "stopped", settings, 1, progress=stop)
    (tmp_path / "stopped" / ".abc.training.safetensors").write_bytes(b"half")
    train(data, tmp_path / "stopped", settings, 1)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    kimg = [json.loads(line)["step"] for line in (tmp_path / "whole/curves.jsonl").read_text().splitlines()]
    assert kimg == sorted(kimg) and kimg[-1] == 0.04


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_parts_of_a_batch_add_up_to_the_batch(kind: str, tmp_path: Path) -> None:
    """Defect 7: the original did not divide by the number of parts. Defect 14: weights that depend on sizes."""
    weights = {}
    for n_parts in (1, 2, 4):
        settings = tiny_settings(in_latents=True, kind=kind, n_accumulated=n_parts, steps_per_epoch=1)
        run = AutoencoderTraining(data_of(settings), settings, 1, torch.device("cpu"))
        run.own = run.own.__class__(**{**vars(run.own), "adversarial_from_step": 0})
        run.advance()
        run.finish(tmp_path / str(n_parts))
        later = DenoiserTraining(
            data_of(settings), settings, 1, torch.device("cpu"), autoencoder=tmp_path / str(n_parts)
        )
        later.advance()
        rows = {**run.rows[-1], **later.rows[-1]}
        weights[n_parts] = {name: value for name, value in rows.items() if isinstance(value, float)}
    for name, value in weights[1].items():
        assert weights[2][name] == pytest.approx(value, rel=2e-4), name
        assert weights[4][name] == pytest.approx(value, rel=2e-4), name
    assert {"loss_l1", "loss_perceptual", "loss_adversarial", "loss_critic", "gradient_norm"} <= weights[1].keys()


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    settings = tiny_settings(in_latents=True)
    for n_processes in (1, 2):
        train(data_of(settings), tmp_path / str(n_processes), settings, 1, n_processes=n_processes)
    for name in ("generator.safetensors", "autoencoder/autoencoder.safetensors"):
        one, two = (load_tensors(tmp_path / str(n) / name)[0] for n in (1, 2))
        assert all(torch.allclose(one[key], two[key], atol=5e-4) for key in one), name
    with pytest.raises(InputError, match="way out"):
        train(data_of(settings), tmp_path / "three", settings, 1, n_processes=3)


def test_the_latents_scale_is_of_the_whole_set_and_stays_with_the_model(tmp_path: Path) -> None:
    """Defect 5: the original took one random batch, and another after every resume."""
    settings = tiny_settings(in_latents=True)
    data = data_of(settings)
    train(data, tmp_path, settings, 1)
    autoencoder, mean, std = load_trained(tmp_path / AUTOENCODER_FOLDER, settings, 1, torch.device("cpu"))
    again = latent_statistics(autoencoder, data, settings)
    assert torch.equal(again[0], mean) and torch.equal(again[1], std)
    every = torch.cat([data.at(step, 4) for step in range(2)])  # 8 of 6 images: two of them twice
    means, log_variances = autoencoder.moments(every)
    assert torch.allclose(mean.flatten(), means.mean(dim=(0, 2, 3)), atol=1e-4)
    variance = means.var(dim=(0, 2, 3), correction=0) + log_variances.exp().mean(dim=(0, 2, 3))
    assert torch.allclose(std.flatten() ** 2, variance, rtol=1e-3)
    model = open_model(tmp_path / "generator.safetensors").model
    assert torch.equal(model.latent_mean, mean) and torch.equal(model.latent_std, std)


def test_validation_looks_at_the_same_crops_times_and_noise_every_time() -> None:
    """Defect 13: random crops and random times made the best epoch a matter of luck."""
    settings = tiny_settings(in_latents=False)
    run = DenoiserTraining(data_of(settings), settings, 1, torch.device("cpu"))
    first = run._validation_loss()
    assert run._validation_loss() == first
    for _ in range(5):
        run.advance()
    assert run._validation_loss() < first


def test_four_channels_train_and_every_one_is_shown(tmp_path: Path) -> None:
    """Defect 4: the original's perceptual term took one or three channels, and its pictures showed the first."""
    settings = tiny_settings(in_latents=True, n_channels=4)
    train(data_of(settings), tmp_path, settings, 1)
    assert sample(tmp_path / "generator.safetensors", [1, 2]).shape == (2, 4, 16, 16)
    from PIL import Image

    with Image.open(tmp_path / "autoencoder/reconstructions.png") as picture:
        assert picture.size == (4 * 16, 2 * 4 * 16)  # originals and reconstructions, four channels each


def test_labels_are_generated_with_their_images(tmp_path: Path) -> None:
    settings = tiny_settings(in_latents=False, n_label_channels=1)
    train(data_of(settings), tmp_path, settings, 1)
    images, labels = sample_with_labels(tmp_path / "generator.safetensors", [1, 2, 3])
    assert images.shape == (3, 1, 16, 16) and labels is not None
    assert labels.shape == (3, 16, 16) and labels.dtype == np.uint8 and labels.max() <= 1
    given = np.random.default_rng(0).integers(0, 4, (2, 5, 5))
    assert np.array_equal(channels_as_labels(labels_as_channels(given, 3).numpy()), given)


def test_a_diverging_training_ends_with_an_error_and_writes_no_model(tmp_path: Path) -> None:
    """Defect 10: the original swallowed every exception and exited 0."""
    settings = tiny_settings(in_latents=False)
    run = DenoiserTraining(data_of(settings), settings, 1, torch.device("cpu"))
    with torch.no_grad():
        next(run.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="diverged at step 1"):
        run.advance()


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    """Defect 9: folds of the original shared one folder."""
    settings = tiny_settings(in_latents=False)
    train(data_of(settings), tmp_path, settings, 1)
    with pytest.raises(InputError, match="delete the folder"):
        train(data_of(settings), tmp_path, settings, 2)


def test_images_follow_from_their_seeds_with_every_sampler(tmp_path: Path) -> None:
    settings = tiny_settings(in_latents=True)
    train(data_of(settings), tmp_path, settings, 1)
    model = open_model(tmp_path / "generator.safetensors").model
    for sampler in ("ddpm", "ddim", "multistep"):
        passes = BatchSampler(model, 3, sampler, 6)
        together = torch.cat(list(passes(range(7))))
        apart = torch.cat([made for seeds in ([0], [1, 2, 3, 4], [5, 6]) for made in passes(seeds)])
        assert torch.equal(together, apart) and not torch.equal(together[0], together[1])


def test_the_average_of_the_weights_samples_and_not_the_weights() -> None:
    settings = tiny_settings(in_latents=False)
    run = DenoiserTraining(data_of(settings), settings, 1, torch.device("cpu"))
    for _ in range(8):
        run.advance()
    average, weights = (dict(network.named_parameters()) for network in (run.average, run.denoiser))
    assert any(not torch.equal(average[name], weights[name]) for name in weights)
    kept = run._with_average().state_dict()
    assert all(torch.equal(kept[f"denoiser.{name}"], value) for name, value in average.items())


class CountingGauge:
    """Says of samples how bright they are; held-out patients are nearest in the middle of the training."""

    n_references, seconds_per_image = 5, 1e-9

    def __init__(self) -> None:
        self.n_measured = 0

    def measure(self, samples: np.ndarray, n_references: int) -> dict[str, float]:
        assert samples.dtype == np.uint8 and samples.shape[1:] == (1, 16, 16) and len(samples) >= 32
        self.n_measured += 1
        distance = abs(self.n_measured - 2) + 0.5
        scores = {"kernel_heldout": distance, "kernel_heldout_error": 0.1, "nearest_train": 1.0}
        return {**scores, "copied_train": self.n_measured / 100}


def test_copies_are_counted_along_the_training_and_held_out_patients_choose_the_snapshot(tmp_path: Path) -> None:
    """Defect 20: the original wrote no metrics, and looked at no copies."""
    settings = tiny_settings(in_latents=False, n_epochs=6, steps_per_epoch=100)
    monitor = CountingGauge()
    train(data_of(settings), tmp_path, settings, 1, monitor=monitor)
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    copied = [(row["step"], row["copied_train"]) for row in rows if "copied_train" in row]
    assert (
        len(copied) == monitor.n_measured >= 3 and [share for _, share in copied] == [0.01, 0.02, 0.03][: len(copied)]
    )
    metadata = load_tensors(tmp_path / "generator.safetensors")[1]["snapshot"]
    assert metadata["rule"] == "heldout" and metadata["kimg"] == copied[1][0] < 2.4
    assert not list(tmp_path.glob("candidate*"))


def test_a_model_learns_blobs(tmp_path: Path) -> None:
    """Real training, not only running code: samples end nearer to the images' mean picture than at the start."""
    images = discs(32)
    settings = tiny_settings(in_latents=False, n_epochs=2, steps_per_epoch=150, n_evaluations=20)
    train(ImageData(images, settings, 1), tmp_path, settings, 1)
    made = sample(tmp_path / "generator.safetensors", range(32)).astype(float)
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
    assert abs(made.mean() - images.mean()) < 25
