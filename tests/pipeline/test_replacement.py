"""Dropped samples are replaced: by the next seeds, up to the asked number or a stated limit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.files import write_json
from common.image_set import ImageEntry, ImageSet, load_image_set, load_labels, save_image_set
from common.progress import silent
from common.seeds import derive_seed
from common.settings import to_dict
from engine.graph import Stage
from engine.run_stage import StageContext
from generators.interface import SampleRequest
from memorization.calibration import Calibration, MemorizationConfig
from memorization.filter import FilterResult, SiteFilter
from memorization.gates import GatesConfig
from pipeline.stages.audit import audit_site
from pipeline.stages.filter import filter_copies
from pipeline.stages.label import label
from pipeline.stages.sample import sample
from pipeline.stages.share import share
from sharing import read_refusal

N_ASKED, SEED = 40, 7


class NoisePerSeed:
    """A generator whose image follows from its seed; it keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def sample(self, request: SampleRequest) -> np.ndarray:
        self.asked += request.seeds
        drawn = (np.random.default_rng(seed).integers(0, 256, (1, 4, 4), dtype=np.uint8) for seed in request.seeds)
        return np.stack(list(drawn))

    def sample_with_masks(self, request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
        images = self.sample(request)
        return images, (images[:, 0] > 128).astype(np.uint8)


class DropsSome(SiteFilter):
    """Drops the images that ``drops`` names by their first pixel."""

    drops: Callable[[np.ndarray], np.ndarray]

    def judge(self, images: np.ndarray, progress: object = None) -> FilterResult:
        n = len(images)
        distances = np.full((n, 1), 0.5)
        first = images[:, 0, 0, 0]
        kept, nobody = ~type(self).drops(first), np.zeros((n, 1), int)
        p_values, seen_by = np.where(kept, 0.5, 0.01), np.full(n, "first pixel")
        features = first[:, None].astype(float)
        return FilterResult(kept, p_values, nobody[:, 0], seen_by, distances, nobody, distances > 1, features)


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs ``sample`` and ``filter`` of site A with a given filter; returns the generator that was asked."""
    slices = ImageSet(np.zeros((2, 1, 4, 4), np.uint8), tuple(ImageEntry(f"r{i}", split="train") for i in range(2)))
    save_image_set(tmp_path / "slices", slices)
    write_json(tmp_path / "generator" / "settings.json", {"n_images": 4})
    calibration = Calibration(0.1, (0.1, 0.2), 5.0, "cross_fit", "e", 2, 2, 2, (0.1, 0.2))
    inputs = {name: tmp_path / name for name in ("slices", "generator", "calibrate", "sample")}

    def run(drops: Callable[[np.ndarray], np.ndarray], factor: float = 2.0, **labels: object) -> NoisePerSeed:
        generator = NoisePerSeed()
        DropsSome.drops = staticmethod(drops)
        own = DropsSome(MemorizationConfig(), calibration, slices, np.zeros((2, 3)), None, None)  # type: ignore
        monkeypatch.setattr("pipeline.samples.find_generator", lambda _: generator)
        monkeypatch.setattr("pipeline.stages.filter.load_site_filter", lambda *_: own)
        sampling = {"name": "noise", "batch_size": "auto", "max_sampled_factor": factor, "seed": SEED, **labels}
        settings = {"sample": {**sampling, "n_images": "auto"}, "filter": {"train_on": "train", "sampling": sampling}}
        for name, function in (("sample", sample), ("filter", filter_copies)):
            stage = Stage(name, 0, "A", "", settings[name], {}, seed=SEED if name == "sample" else 99)
            function(StageContext(stage, tmp_path / name, inputs, "cpu", silent))
        return generator

    return run


def test_labels_stay_with_their_images_through_drops_and_replacements(stages, tmp_path: Path) -> None:
    stages(lambda first: first < 64, labels={"lung": 1})
    for name in ("sample", "filter"):
        images, labels = load_image_set(tmp_path / name).images, load_labels(tmp_path / name)
        assert len(images) == N_ASKED and labels.dtype == np.uint8
        assert np.array_equal(labels, images[:, 0] > 128)


def test_without_labels_none_are_stored(stages, tmp_path: Path) -> None:
    stages(lambda first: first < 64)
    assert not list(tmp_path.rglob("labels.npy"))


def figures(folder: Path) -> tuple[int, int, int]:
    content = json.loads((folder / "filter" / "filter.json").read_text())
    return content["n_sampled"], content["n_kept"], content["n_dropped"]


def test_the_asked_number_is_kept_though_some_are_dropped_and_all_that_was_sampled_is_on_record(
    stages, tmp_path: Path
) -> None:
    generator = stages(lambda first: first < 64)  # a quarter
    n_sampled, n_kept, n_dropped = figures(tmp_path)
    kept = load_image_set(tmp_path / "filter")
    assert n_kept == len(kept) == N_ASKED and n_dropped > 0 and n_sampled == n_kept + n_dropped
    assert generator.asked == [derive_seed(SEED, number) for number in range(n_sampled)]  # none for nothing, none twice
    assert (kept.images[:, 0, 0, 0] >= 64).all()
    features = np.load(tmp_path / "filter" / "features.npy")  # what the audit looks at
    np.testing.assert_array_equal(features[:, 0], kept.images[:, 0, 0, 0])
    with (tmp_path / "filter" / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["name"] for row in rows}) == len(rows) == n_sampled
    assert [row["name"] for row in rows if row["kept"] == "1"] == [entry.name for entry in kept.entries]


def test_what_passes_of_the_first_samples_is_what_passed_without_replacements(stages, tmp_path: Path) -> None:
    stages(lambda first: first < 64, factor=1.0)
    alone = load_image_set(tmp_path / "filter", in_memory=True)
    stages(lambda first: first < 64)
    replaced = load_image_set(tmp_path / "filter")
    assert len(alone) < N_ASKED and replaced.entries[: len(alone)] == alone.entries
    np.testing.assert_array_equal(replaced.images[: len(alone)], alone.images)


def test_at_the_limit_what_passed_is_kept_and_the_numbers_are_said(stages, tmp_path: Path, caplog) -> None:
    stages(lambda first: first < 230, factor=1.5)  # one in ten passes
    n_sampled, n_kept, _ = figures(tmp_path)
    assert n_sampled == 60 and 0 < n_kept < N_ASKED
    assert f"{n_kept} of the 40 images asked for passed the filter, of 60 sampled" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        GatesConfig(n_planted_copies=0),
        GatesConfig(enforce=False, max_dropped_share=1, min_measured=0, n_planted_copies=0),
    ],
)
def test_nothing_kept_at_the_limit_is_a_refusal_whatever_the_gates(
    stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: GatesConfig
) -> None:
    stages(lambda first: first >= 0)
    assert figures(tmp_path) == (80, 0, 80)
    (tmp_path / "calibrate").mkdir()
    np.save(tmp_path / "calibrate" / "features.npy", np.zeros((2, 1)))
    monkeypatch.setattr("pipeline.stages.label.load_model", lambda *_: None)
    settings = {"batch_size": 4, "train_on": "train", "gates": to_dict(config)}
    inputs = {name: tmp_path / name for name in ("slices", "calibrate", "filter", "segment_real", "label", "audit")}
    for name, function in (("label", label), ("audit", audit_site), ("share", share)):
        function(StageContext(Stage(name, 0, "A", "", settings, {}), tmp_path / name, inputs, "cpu", silent))
    refusal = read_refusal(tmp_path / "share")
    assert refusal is not None and refusal.failed[0].name == "dropped share"
    assert "80 of 80" in refusal.failed[0].reason and "nothing to share" in (tmp_path / "share/REFUSED.md").read_text()


def test_replacing_one_in_twenty_costs_less_than_a_third_of_the_sampling(stages, tmp_path: Path) -> None:
    stages(lambda first: first < 13)
    assert figures(tmp_path)[0] < 1.3 * N_ASKED
