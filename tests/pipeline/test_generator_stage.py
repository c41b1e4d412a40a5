"""The stage that trains a site's generator: what it tells the generator of the site's images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.gan_trainings import noise_images, plan_of

import pipeline.stages.generator
from common.image_set import ImageEntry, ImageSet, save_image_set
from generators.interface import TrainRequest


def test_a_generator_is_told_whose_each_training_image_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differential privacy counts by patients; without their names it could not."""
    splits = ["train", "val", "train", "train", "val"]
    entries = [ImageEntry(f"i{i}", patient=f"p{i % 3}", split=split) for i, split in enumerate(splits)]
    save_image_set(tmp_path / "slices", ImageSet(noise_images(), tuple(entries)))
    requests: list[TrainRequest] = []
    generator = SimpleNamespace(
        train=lambda request: requests.append(request) or {}, sees_mirrored=lambda _: False, shared_type=object
    )
    monkeypatch.setattr(pipeline.stages.generator, "find_generator", lambda _: generator)
    monkeypatch.setattr(pipeline.stages.generator, "load_plan", lambda _: plan_of((10, 16), [(2, 2), (1, 2)]))
    settings = {"name": "stylegan2", "train_on": "train", "kimg": "auto", "settings": {}}
    context = SimpleNamespace(
        stage=SimpleNamespace(settings=settings),
        inputs={"slices": tmp_path / "slices", "plan": tmp_path},
        out=tmp_path,
        seed=3,
        device="cpu",
        progress=None,
        embeddings=None,
    )
    pipeline.stages.generator.train_generator(context)
    assert requests[0].patients == ["p0", "p2", "p0"] and len(requests[0].images) == 3
