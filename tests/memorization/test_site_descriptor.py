"""The site's own descriptor: deterministic, learned, honest only on images that it was not trained on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import betabinom

from common.progress import Progress, silent
from memorization.copy_score import Likeness, Scorer
from memorization.filter import p_values
from memorization.planted.copies import KINDS
from memorization.planted.planted_audit import audit_scorers, compare
from memorization.registration.maps import grey
from memorization.site_descriptor import training
from memorization.site_descriptor.network import CopyNetwork
from memorization.site_descriptor.scorer import SITE_DESCRIPTOR, STATISTICS, DescribedReferences


def anatomies(n: int, seed: int) -> np.ndarray:
    """(n, 1, 32, 32) uint8: one shape for all with variations, as the images of one modality and one view are."""
    rng = np.random.default_rng(seed)
    shared = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=(32, 32)), 4)
    own = ndimage.gaussian_filter(rng.normal(size=(n, 32, 32)), (0, 2, 2))
    images = 2 * shared / shared.std() + own / own.std()
    return np.rint(np.clip(128 + 25 * images, 0, 255)).astype(np.uint8)[:, None]


def altered(images: np.ndarray) -> np.ndarray:
    """Turned by 17 degrees and in the middle by twice that, flatter, darker, blurred and noisy."""
    line = np.arange(32) - 15.5
    y, x = np.meshgrid(line, line, indexing="ij")
    turn = 0.3 + 0.3 * np.exp(-(x**2 + y**2) / 150)
    at = [15.5 + y * np.cos(turn) - x * np.sin(turn), 15.5 + y * np.sin(turn) + x * np.cos(turn)]
    moved = np.stack([ndimage.map_coordinates(image[0].astype(float), at, order=1, mode="nearest") for image in images])
    blurred = 0.6 * ndimage.gaussian_filter(moved, (0, 0.5, 0.5)) + 10
    noisy = blurred + np.random.default_rng(0).normal(0, 2, blurred.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)[:, None]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "N_STEPS", 2)


@pytest.fixture(scope="module")
def trained() -> Scorer:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "N_STEPS", 30)
        return SITE_DESCRIPTOR.train(anatomies(24, seed=1), seed=3)


def test_two_trainings_are_equal_to_the_bit(short: None) -> None:
    torch.manual_seed(1)
    first = training.train(grey(anatomies(5, seed=1)), seed=7).state_dict()
    torch.manual_seed(2)  # nothing outside the seed counts
    second = training.train(grey(anatomies(5, seed=1)), seed=7).state_dict()
    other = training.train(grey(anatomies(5, seed=1)), seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["image.weight"], other["image.weight"])


def test_a_copys_original_is_ranked_first_by_what_was_learned(trained: Scorer) -> None:
    """By the cells that fit best; an untrained network's cells say less, though over the whole frame they suffice."""
    images = anatomies(24, seed=2)  # of patients that it was not trained on
    torch.manual_seed(0)
    untrained = replace(trained, index=partial(DescribedReferences, CopyNetwork().eval()))
    first = [
        (scorer.index(images).compare(altered(images)).nearest[:, :3] == np.arange(24)[:, None]).mean()
        for scorer in (trained, untrained)
    ]
    assert first[0] > first[1] + 0.2


@pytest.mark.parametrize(("dtype", "n_channels", "n_images"), [(np.uint8, 3, 1), (np.uint16, 1, 2), (np.uint8, 1, 3)])
def test_a_handful_of_images_of_any_type_trains_and_finds_itself(short: None, dtype, n_channels, n_images) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (n_images, n_channels, 40, 24), dtype=dtype)
    likeness = SITE_DESCRIPTOR.train(images, seed=1).index(images).compare(images)
    assert likeness.values.shape == (n_images, len(STATISTICS)) and np.isfinite(likeness.values).all()
    assert (likeness.nearest == np.arange(n_images)[:, None]).all()


def test_honest_images_are_dropped_at_the_level_it_is_calibrated_to(trained: Scorer) -> None:
    """At 10 %, calibrated on images that it was not trained on; its training images are references and no more."""
    references = np.concatenate([anatomies(10, seed=1), anatomies(39, seed=4)])
    index = trained.index(references)
    itself = np.eye(len(references), dtype=bool)[10:]
    calibration = index.compare(references[10:], itself).values
    dropped = (p_values(calibration, index.compare(anatomies(50, seed=5)).values) <= 0.1).sum()
    low, high = betabinom.ppf((0.005, 0.995), 50, 4, 36)
    assert low <= dropped <= high


def test_a_learner_is_calibrated_on_images_it_has_not_seen_and_the_others_on_all() -> None:
    learner = Memoriser()
    images, patients = anatomies(40, seed=6), [f"p{i // 2}" for i in range(40)]
    compared = compare(images, patients, [Brightness()], 2, 1, KINDS[:1], learners=[learner])
    assert len(compared.columns([0]).calibration.values) == 24  # 12 of 20 patients are indexed
    of_learner = compared.columns([1])
    assert len(of_learner.calibration.values) == 12 and len(learner.learned) == 12
    assert (of_learner.calibration.values == 1).all()  # none that it has seen
    assert (p_values(of_learner.calibration.values, of_learner.honest.values) == 1).all()
    seen = compared.calibration.values[~compared.calibrates[:, 1]][:, 1:]
    assert (p_values(seen, of_learner.honest.values) == 1 / 13).all()  # those would have every honest image dropped
    assert len(compared.columns([0, 1]).calibration.values) == 12
    audits = audit_scorers(images, patients, [Brightness()], 0.05, 2, 1, KINDS[:1], learners=[learner])
    assert [audit.name for audit in audits] == ["brightness", "memoriser", "fused with memoriser"]
    assert audits[0].level == 0.05 and audits[1].level == audits[2].level == 1 / 13


class Brightness:
    """The mean grey value alone."""

    name, statistics = "brightness", ("brightness",)

    def index(self, references: np.ndarray) -> Brightness:
        self._references = references.mean((1, 2, 3))
        return self

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        differences = np.abs(images.mean((1, 2, 3))[:, None] - self._references[None])
        if excluded is not None:
            differences[excluded] = np.inf
        return Likeness(-differences.min(1)[:, None], differences.argmin(1)[:, None])


class Memoriser(Brightness):
    """Knows the images that it learned from, and says 0 for them and 1 for all others."""

    name, statistics = "memoriser", ("memoriser",)

    def train(self, images: np.ndarray, seed: int, progress: Progress = silent) -> Memoriser:
        self.learned = {image.tobytes() for image in images}
        return self

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        values = np.array([[0.0 if image.tobytes() in self.learned else 1.0] for image in images])
        return Likeness(values, np.zeros(values.shape, np.int64))
