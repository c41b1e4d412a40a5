"""A training that failed is tried once more with another seed, where the user asked for it."""

from __future__ import annotations

import json

import pytest

from common.progress import silent
from engine.graph import Stage
from engine.run_stage import StageContext
from pipeline.stages import segment


def context_in(folder, *, retry: bool) -> StageContext:
    settings = {"train": {}, **({"retry_failed": True} if retry else {})}
    stage = Stage(
        name="segment_real", fold=0, site="A", function="", settings=settings, inputs={}, seed=7, is_training=True
    )
    return StageContext(stage, out=folder, inputs={"plan": folder / "plan"}, device="cpu", progress=silent)


@pytest.fixture
def seeds(monkeypatch):
    """Seeds of the attempts; the curve of the first one stays at 0."""
    found: list[int] = []

    def train(planned, out, settings, seed, *_):
        found.append(seed)
        (out / "model").mkdir(exist_ok=True)
        dice = 0.0 if seed == 7 else 0.8
        (out / "curves.jsonl").write_text(json.dumps({"step": 1, "pseudo_dice": dice}) + "\n")

    monkeypatch.setattr(segment, "train", train)
    return found


def test_a_failed_training_is_repeated_once_and_the_first_attempt_kept(tmp_path, seeds):
    segment.train_segmentation(context_in(tmp_path, retry=True))
    assert len(seeds) == 2 and seeds[0] == 7 != seeds[1]
    assert "0.0" in (tmp_path / "first_attempt" / "curves.jsonl").read_text()
    assert "0.8" in (tmp_path / "curves.jsonl").read_text() and (tmp_path / "model").is_dir()


def test_a_run_that_was_killed_goes_on_in_its_second_attempt(tmp_path, seeds):
    (tmp_path / "first_attempt.partial").mkdir()
    (tmp_path / "curves.jsonl").write_text('{"step": 1, "pseudo_dice": 0.0}\n')  # not moved yet
    segment.train_segmentation(context_in(tmp_path, retry=True))
    assert len(seeds) == 1 and seeds[0] != 7 and (tmp_path / "first_attempt" / "curves.jsonl").is_file()


def test_without_the_option_a_failed_training_stays(tmp_path, seeds):
    segment.train_segmentation(context_in(tmp_path, retry=False))
    assert seeds == [7] and not (tmp_path / "first_attempt").exists()
