"""The in-training monitor: which snapshot is kept, when it is asked, and what happens when a training fails."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.gan_trainings import TINY, Stop, contents, noise_images, stop_after, tiny_settings

import gan.training as training
from common.checkpoints import load_tensors
from common.errors import InputError
from gan.schedule import (
    SHARE_OF_TIME,
    SPEEDS,
    derive_schedule,
    forward_macs,
    image_seconds,
    snapshot_interval,
)
from gan.settings import GanConfig, GanSettings
from gan.train import train
from gan.train_step import TrainStep
from gan.training import CHECKPOINT, RESULT
from training.alarms import ALARMS, N_ATTEMPTS, Health
from training.curves import CURVES
from training.monitor import MonitorSchedule
from training.pictures import SHEET
from training.snapshots import Candidate, choose, still_eligible


def candidate(kimg: float, kernel: float, nearest: float, error: float = 0.1, frechet: float = 0.0) -> Candidate:
    scores = {"kernel_heldout": kernel, "kernel_heldout_error": error, "nearest_train": nearest}
    return Candidate(int(kimg * 1000), kimg, {**scores, "frechet_train": frechet})


def chosen_one_by_one(candidates: list[Candidate], rule: str) -> Candidate | None:
    kept: list[Candidate] = []
    for one in candidates:
        kept = still_eligible([*kept, one], rule)
    return choose(kept, rule)[0]


def test_the_choice_does_not_reward_copying() -> None:
    """The last snapshot is closest to training and, within its error, to held-out images; it copies."""
    young = candidate(1, kernel=2.0, nearest=1.4, frechet=9)
    honest = candidate(2, kernel=0.55, nearest=0.95, frechet=4)
    copying = candidate(3, kernel=0.50, nearest=0.2, frechet=1)
    run = [young, honest, copying]
    assert chosen_one_by_one(run, "heldout") == choose(run, "heldout")[0] == honest
    assert chosen_one_by_one(run, "fid") == copying and chosen_one_by_one(run, "last") is None


def test_a_clearly_closer_snapshot_is_kept_and_ties_go_to_the_earlier() -> None:
    assert chosen_one_by_one([candidate(1, 0.9, 1.0), candidate(2, 0.5, 0.8)], "heldout") == candidate(2, 0.5, 0.8)
    assert chosen_one_by_one([candidate(1, 0.5, 0.9), candidate(2, 0.5, 0.9)], "heldout") == candidate(1, 0.5, 0.9)


def test_images_farther_from_training_than_unseen_patients_are_not_preferred_for_that() -> None:
    """Noise is farther from the training images than any patient."""
    assert chosen_one_by_one([candidate(1, 0.55, 3.4), candidate(2, 0.5, 1.1)], "heldout") == candidate(2, 0.5, 1.1)


def test_snapshots_dropped_on_the_way_are_never_those_the_whole_sequence_would_choose() -> None:
    """With equal errors; few are kept at a time, as each is a file of the generator's size."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        run = [candidate(i, *rng.uniform(0, 1.5, 2).round(1), error=0.25) for i in range(1, 21)]
        assert chosen_one_by_one(run, "heldout") == choose(run, "heldout")[0]


@pytest.fixture(autouse=True)
def gauged_at_every_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their estimate these trainings of 32 images are too short for a monitor."""
    monkeypatch.setattr(training, "derive_schedule", lambda *_: MonitorSchedule(1, 4, 10))


class FakeMonitor:
    """Scores in a given order; counts what it is asked."""

    n_references, seconds_per_image = 10, 1e-9

    def __init__(self, scores: list[dict[str, float]]) -> None:
        self.scores, self.sums = scores, []

    def measure(self, samples: np.ndarray, n_references: int) -> dict[str, float]:
        self.sums.append(int(samples.sum()))
        return self.scores[(len(self.sums) - 1) % len(self.scores)]


class PixelMonitor(FakeMonitor):
    """Scores that follow from the samples, as a real monitor's do."""

    def __init__(self) -> None:
        super().__init__([])

    def measure(self, samples: np.ndarray, n_references: int) -> dict[str, float]:
        mean = float(samples.mean())
        return {"nearest_train": mean / 100, "kernel_heldout": mean % 7, "kernel_heldout_error": 3.0, "diversity": 1.0}


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / CURVES).read_text().splitlines()]


def test_the_chosen_snapshot_is_what_the_generator_and_its_sheet_hold(tmp_path: Path) -> None:
    scores = [candidate(1, *pair).scores for pair in ((2.0, 1.2), (0.5, 0.9), (0.5, 0.4), (0.6, 0.3))]
    train(noise_images(), tmp_path / "gauged", tiny_settings(), seed=3, monitor=FakeMonitor(scores))
    tensors, metadata = load_tensors(tmp_path / "gauged" / RESULT)
    assert metadata["snapshot"]["kimg"] == 0.016 and metadata["snapshot"]["of_kimg"] == 0.032
    assert "held-out" in metadata["snapshot"]["reason"] and metadata["snapshot"]["scores"] == scores[1]
    with pytest.raises(Stop):
        train(noise_images(), tmp_path / "half", tiny_settings(), 3, progress=stop_after(8))
    halfway = load_tensors(tmp_path / "half" / CHECKPOINT)[0]
    assert all(torch.equal(tensor, halfway[f"average.{name}"]) for name, tensor in tensors.items())
    assert (tmp_path / "gauged" / SHEET).read_bytes() == (tmp_path / "half" / SHEET).read_bytes()
    assert [name for name in contents(tmp_path / "gauged") if name.endswith(".safetensors")] == [RESULT]
    gauged = [row for row in rows_of(tmp_path / "gauged") if "kernel_heldout" in row]
    assert [row["step"] for row in gauged] == [0.008, 0.016, 0.024, 0.032] and "loss_g" not in gauged[0]


@pytest.mark.parametrize("n_steps", [3, 6, 11, 16])
def test_an_interrupted_gauged_training_ends_with_the_same_bytes(tmp_path: Path, n_steps: int) -> None:
    train(noise_images(), tmp_path / "whole", tiny_settings(), seed=3, monitor=PixelMonitor())
    with pytest.raises(Stop):
        train(
            noise_images(), tmp_path / "parts", tiny_settings(), 3, progress=stop_after(n_steps), monitor=PixelMonitor()
        )
    train(noise_images(), tmp_path / "parts", tiny_settings(), seed=3, monitor=PixelMonitor())
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_the_monitor_sees_the_same_latents_at_every_snapshot_and_the_training_none_of_it(tmp_path: Path) -> None:
    frozen = GanConfig(**{**TINY.__dict__, "learning_rate": 1e-12, "snapshot": "last"})
    monitor = FakeMonitor([{}])
    train(noise_images(), tmp_path / "gauged", tiny_settings(config=frozen), seed=3, monitor=monitor)
    assert len(monitor.sums) == 4 and len(set(monitor.sums)) == 1
    train(noise_images(), tmp_path / "alone", tiny_settings(config=frozen), seed=3)
    assert contents(tmp_path / "gauged") == contents(tmp_path / "alone")


def test_without_held_out_scores_the_last_snapshot_is_taken_and_says_why(tmp_path: Path) -> None:
    train(noise_images(), tmp_path, tiny_settings(), seed=3, monitor=FakeMonitor([{"frechet_train": 1.0}]))
    snapshot = load_tensors(tmp_path / RESULT)[1]["snapshot"]
    assert snapshot["kimg"] == 0.032 and "no snapshot was compared with held-out patients" in snapshot["reason"]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match=r"generator\.settings\.snapshot"):
        tiny_settings(config=GanConfig(**{**TINY.__dict__, "snapshot": "best"}))


def settings_of(n_images: int, **changes: object) -> GanSettings:
    return tiny_settings(n_steps=n_images // 8, config=GanConfig(**{**TINY.__dict__, "batch_size": 8, **changes}))


@pytest.mark.parametrize("n_images", [800, 40_000, 200_000, 4_000_000])
@pytest.mark.parametrize("n_references", [10, 700, 20_000])
@pytest.mark.parametrize("widths", [{}, {"channel_base": 4096, "channel_max": 256}])
def test_the_monitor_stays_within_its_share_of_the_time(n_images: int, n_references: int, widths: dict) -> None:
    settings, embed_s = settings_of(n_images, n_snapshots=20, **widths), 0.01
    schedule = derive_schedule(settings, embed_s, n_references)
    generate_s, train_s = image_seconds(settings, SPEEDS["cpu"])
    n_snapshots = math.ceil(settings.n_steps / snapshot_interval(settings))
    n_gauged = sum(schedule.is_due(left) for left in range(n_snapshots))
    spent_s = n_gauged * schedule.n_samples * (generate_s + embed_s) + schedule.n_references * embed_s
    assert spent_s <= SHARE_OF_TIME * train_s * n_images and schedule.n_references <= n_references
    assert n_gauged == 0 or (n_gauged >= 3 and schedule.is_due(0) and 64 <= schedule.n_samples <= 512)
    if n_images == 4_000_000 and widths:
        assert n_gauged == 20 and schedule.n_samples == 512


def test_multiplications_are_those_of_a_hand_count() -> None:
    """Channels 5, 7, 8 at 10 x 16, 5 x 8 and 5 x 4, all kernels 3 x 3."""
    settings = tiny_settings()
    assert settings.channels == (5, 8, 8)
    generator = 9 * (20 * 64 + 20 * 64 + 40 * 64 + 40 * 40 + 160 * 25)
    discriminator = 9 * (160 * 25 + 40 * 40 + 40 * 64 + 20 * 64 + 20 * 64) + 40 * 40 + 20 * 64
    assert forward_macs(settings) == (generator, discriminator)


def failing(monkeypatch: pytest.MonkeyPatch, at_step: int, n_times: int) -> None:
    """The first ``n_times`` attempts diverge at ``at_step``; the same attempt always does, as in life."""
    plain = training.Training.advance

    def advance(self: training.Training) -> None:
        if self.attempt < n_times and self.step == at_step:
            self.train_step.generator.constant.data.fill_(torch.nan)
        plain(self)

    monkeypatch.setattr(training.Training, "advance", advance)


@pytest.mark.parametrize("at_step,back_to", [(6, 0.008), (1, 0.0)])
def test_after_a_divergence_it_goes_on_from_the_last_good_snapshot_with_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at_step: int, back_to: float
) -> None:
    train(noise_images(), tmp_path / "undisturbed", tiny_settings(), seed=3)
    failing(monkeypatch, at_step, 1)
    with caplog.at_level(logging.WARNING):
        train(noise_images(), tmp_path / "whole", tiny_settings(), seed=3, monitor=PixelMonitor())
    alarm = json.loads((tmp_path / "whole" / ALARMS).read_text())
    assert alarm["alarm"] == "divergence" and alarm["back_to"] == back_to
    assert alarm["step"] == pytest.approx((at_step + 1) * 0.002) and "learning_rate" in alarm["message"]
    assert len(alarm["curve"]) == min(5, at_step + (at_step > 4)) and "alarm at" in caplog.text
    losses = {row["step"]: row for row in rows_of(tmp_path / "whole") if "loss_g" in row}
    before = {row["step"]: row for row in rows_of(tmp_path / "undisturbed")}
    assert sorted(losses) == sorted(before)
    assert all((losses[step] == before[step]) == (step <= back_to) for step in before)
    for n_steps in (at_step + 2, at_step + 5):  # killed in the failing attempt's wake
        parts = tmp_path / str(n_steps)
        with pytest.raises(Stop):
            train(noise_images(), parts, tiny_settings(), 3, progress=stop_after(n_steps), monitor=PixelMonitor())
        train(noise_images(), parts, tiny_settings(), seed=3, monitor=PixelMonitor())
        assert contents(parts) == contents(tmp_path / "whole")


def test_it_gives_up_after_a_few_attempts_and_says_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 6, 99)
    with pytest.raises(RuntimeError, match=r"step 7 .*r1_gamma.*attempt 3 of 3; see .*alarms.jsonl"):
        train(noise_images(), tmp_path, tiny_settings(), seed=3)
    assert len((tmp_path / ALARMS).read_text().splitlines()) == N_ATTEMPTS


class CollapsingMonitor(PixelMonitor):
    """The samples are alike from the second snapshot on, until the training goes another way."""

    def __init__(self, honest: set[int]) -> None:
        super().__init__()
        self.honest = honest

    def measure(self, samples: np.ndarray, n_references: int) -> dict[str, float]:
        scores = super().measure(samples, n_references)
        collapsed = int(samples.sum()) in self.honest
        return {**scores, "diversity": 0.05 if collapsed else 1.0}


def test_after_a_mode_collapse_it_goes_back_before_its_first_sign(tmp_path: Path) -> None:
    monitor = FakeMonitor([{}])
    train(noise_images(), tmp_path / "undisturbed", tiny_settings(), seed=3, monitor=monitor)
    collapsing = CollapsingMonitor(set(monitor.sums[1:]))  # from the second snapshot of the first attempt on
    train(noise_images(), tmp_path / "whole", tiny_settings(), seed=3, monitor=collapsing)
    alarm = json.loads((tmp_path / "whole" / ALARMS).read_text())
    assert (alarm["alarm"], alarm["step"], alarm["back_to"]) == ("mode collapse", 0.024, 0.008)
    assert load_tensors(tmp_path / "whole" / RESULT)[1]["n_alarms"] == 1
    for n_steps in (9, 13):
        parts = tmp_path / str(n_steps)
        with pytest.raises(Stop):
            train(noise_images(), parts, tiny_settings(), 3, progress=stop_after(n_steps), monitor=collapsing)
        train(noise_images(), parts, tiny_settings(), seed=3, monitor=collapsing)
        assert contents(parts) == contents(tmp_path / "whole")
    save = training.save_tensors
    for n_saves in (2, 3, 4, 7):  # killed while it writes: the first sign, the way back, the next good one, the result
        parts, left = tmp_path / f"killed_{n_saves}", [n_saves]

        def save_or_die(path: Path, *content: dict, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Stop
            save(path, *content)

        with pytest.MonkeyPatch.context() as patched, pytest.raises(Stop):
            patched.setattr(training, "save_tensors", save_or_die)
            train(noise_images(), parts, tiny_settings(), 3, monitor=collapsing)
        train(noise_images(), parts, tiny_settings(), seed=3, monitor=collapsing)
        assert contents(parts) == contents(tmp_path / "whole")


def test_images_that_never_differed_are_no_collapse_and_one_low_measurement_is_none() -> None:
    health = Health()
    for diversity in (0.01, 0.1, 0.15, 0.5, 0.1, 0.5, 0.1):
        health = health.after(diversity)
        health.check(diversity, 1)
    with pytest.raises(RuntimeError, match=r"step 9 .*0\.10 of the real"):
        health.after(0.1).check(0.1, 9)


def test_exploding_weights_are_seen_before_they_are_written(tmp_path: Path) -> None:
    plain = TrainStep.average_weights

    def explode(self: TrainStep) -> None:
        plain(self)
        self.discriminator.bias.data.fill_(1e9)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainStep, "average_weights", explode)
        with pytest.raises(RuntimeError, match="diverged"):
            train(noise_images(), tmp_path, tiny_settings(), seed=3)
