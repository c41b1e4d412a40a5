"""The random numbers of a private training: from the whole secret, of the stated distribution, one's own for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from support.private_trainings import private_settings as settings
from support.private_trainings import seven_images, training

from common.seeds import derive_seed
from gan.privacy import GRID_OF_A_CLIP, Mechanism
from gan.private_batches import PrivateBatches
from gan.secret import IDENTITY_BYTES, SECRET_BYTES, Secret
from gan.training import Training

CPU = torch.device("cpu")


def noise_of(secret: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The noise of a training's first step, as its mechanism draws it."""
    monkeypatch.setattr(Secret, "new", lambda: Secret(secret))
    reals = training(seven_images(), settings())._reals()
    assert not isinstance(reals, torch.Tensor)
    (noise,) = reals.mechanism.gradient(torch.sum, [], [torch.zeros(50)], reals.noise)
    return noise


def test_pytorch_keeps_32_bits_of_a_seed() -> None:
    """Why no noise may come from its generator."""
    drawn = [torch.randn(9, generator=torch.Generator().manual_seed(5 + high * 2**32)) for high in (0, 1, 2**30)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_secrets_of_one_seed_of_32_bits_draw_different_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some hundred thousand secrets, some agree in those bits of what used to be the seed of the first step."""
    first_of: dict[int, str] = {}
    pairs = []
    for number in range(200_000):
        secret = f"{number:064x}"
        other = first_of.setdefault(derive_seed(secret, 0, "noise") % 2**32, secret)
        if other != secret:
            pairs.append((other, secret))
    assert pairs
    for pair in pairs[:3]:
        assert not torch.equal(*(noise_of(secret, monkeypatch) for secret in pair))


def test_every_bit_of_the_secret_changes_the_noise_and_the_step_does() -> None:
    first, second = Secret.new().hexadecimal, Secret.new().hexadecimal
    assert len(first) == 2 * SECRET_BYTES == 64 and first != second
    secrets = [0, *(2**bit for bit in range(8 * SECRET_BYTES))]
    drawn = {tuple(Secret(f"{one:064x}").stream(0, "noise").whole(4, CPU).tolist()) for one in secrets}
    assert len(drawn) == len(secrets)
    names = [(0, "noise"), (1, "noise"), (0, "sampling")]
    assert len({tuple(Secret("0" * 64).stream(*name).whole(4, CPU).tolist()) for name in names}) == 3


def test_noise_is_gaussian_and_on_the_grid_of_the_sum() -> None:
    drawn = Secret("1" * 64).stream("noise").gaussian(1_000_001, CPU).numpy()  # some pieces, the last of an odd number
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-3
    assert abs(stats.kurtosis(drawn)) < 5 * np.sqrt(24 / len(drawn)) and np.abs(drawn).max() < 8.6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(len(drawn))
    mechanism = Mechanism(clip_norm=0.5, noise_multiplier=3.0, sampling_rate=0.1, delta=1e-5, n_expected=4)
    weights = torch.zeros(1000, dtype=torch.float64)
    (noise,) = mechanism.gradient(torch.sum, [], [weights], Secret("1" * 64).stream("noise"))
    steps = noise * 4 / 0.5 * GRID_OF_A_CLIP
    assert torch.equal(steps, steps.round()) and len(steps.unique()) > 900


def test_the_numbers_of_each_are_uniform_and_its_own() -> None:
    identities = np.random.default_rng(0).integers(0, 256, (5000, IDENTITY_BYTES), np.uint8)
    secret = Secret("2" * 64)
    drawn = secret.numbers_of_each(identities, 5, "a")
    assert drawn.shape == (5000, 5) and stats.kstest(drawn.ravel(), stats.uniform.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 5 / np.sqrt(5000)
    assert np.array_equal(secret.numbers_of_each(identities[7:9], 5, "a"), drawn[7:9])
    assert np.array_equal(secret.numbers_of_each(identities, 2, "a"), drawn[:, :2])
    assert not (secret.numbers_of_each(identities, 5, "b") == drawn).any()


def test_equal_images_are_drawn_mirrored_and_augmented_each_by_itself() -> None:
    """If copies came together, one of them would tell of the other, and the sampling would amplify nothing."""
    images = np.repeat(seven_images()[:1], 4, axis=0)
    batches = PrivateBatches(images, settings(), 0.5, Secret("3" * 64))
    sizes = [len(batches.at(step)) for step in range(400)]
    assert stats.chisquare(np.bincount(sizes, minlength=5), 400 * stats.binom.pmf(range(5), 4, 0.5)).pvalue > 1e-3
    shown = next(units for units in map(batches.at, range(400)) if len(units) == 4)
    assert len({tuple(unit.numbers[0].tolist()) for unit in shown}) == 4


def test_of_a_patient_some_images_are_drawn_anew_in_each_step() -> None:
    images, patients = seven_images(), ["a"] * 5 + ["b"] * 2
    batches = PrivateBatches(images, settings(unit="patient", images_per_patient=2), 1.0, Secret("4" * 64), patients)
    of_a = [units[0].images for units in map(batches.at, range(20))]
    assert {len(shown) for shown in of_a} == {2} and len({shown.numpy().tobytes() for shown in of_a}) > 5
    assert isinstance(training(images, settings(unit="patient"), patients), Training)
