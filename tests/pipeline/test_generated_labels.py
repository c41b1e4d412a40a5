"""Labels that a generator makes with its images: what is asked, stored, compared, shared and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skimage import io
from support.tiny_experiment import composed, run_tiny

from common.errors import InputError
from common.image_set import (
    ImageEntry,
    ImageSet,
    ImageSetInfo,
    Intensity,
    load_image_set,
    load_labels,
    save_image_set,
    save_labels,
)
from common.progress import silent
from engine.graph import Stage
from engine.run_stage import StageContext
from evaluation.label_agreement import N_LEAST_ALIKE, compare_labels
from evaluation.report.labels import labels_section
from evaluation.report.run import RunFiles
from generators.registry import find_generator
from pipeline.experiment import build_graph
from pipeline.stages.label import label
from sharing import verify_package

WITH_LABELS = ("generator=ddpm", "generator.settings.with_labels=true")
LESS = ("evaluation.real_all=false", "merge.cross_site_check=false")


def strips(*columns: int, label: int = 1) -> np.ndarray:
    """Maps (n, 4, 10) whose first columns have the label."""
    maps = np.zeros((len(columns), 4, 10), np.uint8)
    for one, n_columns in zip(maps, columns, strict=True):
        one[:, :n_columns] = label
    return maps


def test_agreement_in_closed_form() -> None:
    """Dice of strips of a and b columns is 2 min(a, b) / (a + b); where both are empty there is none."""
    names = ["half", "same", "none", "missed"]
    found = compare_labels(strips(2, 5, 0, 5), strips(6, 5, 0, 0), {"lung": 1}, names)
    (lung,) = found.classes
    assert lung.dice == pytest.approx((0.5 + 1 + 0) / 3)
    assert (lung.n_compared, lung.n_both_empty, found.n_images) == (3, 1, 4)
    assert lung.low is None and lung.high is None  # three images are too few for an interval
    assert (lung.generated_share, lung.predicted_share) == (pytest.approx(12 / 40), pytest.approx(11 / 40))
    assert (found.generated_share, found.predicted_share) == (lung.generated_share, lung.predicted_share)
    assert [(pair.image, pair.dice) for pair in found.least_alike] == [("missed", 0), ("half", 0.5), ("same", 1)]


def test_ten_images_have_an_interval() -> None:
    found = compare_labels(strips(*range(1, 11)), strips(*[6] * 10), {"lung": 1}, list("abcdefghij"))
    (lung,) = found.classes
    assert lung.low is not None and lung.high is not None and 0 < lung.low < lung.dice < lung.high < 1


def test_classes_are_compared_each_on_its_own() -> None:
    """A class that only one map has counts as 0 in an image's mean; one that neither has does not count."""
    generated = np.concatenate([strips(4), strips(4, label=2)])
    found = compare_labels(generated, strips(4, 4), {"lung": 1, "heart": 2, "rib": 3}, ["a", "b"])
    lung, heart, rib = found.classes
    assert (lung.dice, lung.n_compared) == (0.5, 2)
    assert (heart.dice, heart.low, heart.n_compared, heart.n_both_empty) == (0, None, 1, 1)  # one image: no interval
    assert (rib.dice, rib.n_compared, rib.n_both_empty, rib.generated_share) == (None, 0, 2, 0)
    assert found.generated_share == found.predicted_share == pytest.approx(0.4)
    assert [(pair.image, pair.dice) for pair in found.least_alike] == [("b", 0), ("a", 1)]


def test_at_most_six_pairs_are_shown_and_none_without_labels() -> None:
    found = compare_labels(strips(*range(1, 10)), strips(*[9] * 9), {"lung": 1}, list("abcdefghi"))
    assert [pair.image for pair in found.least_alike] == list("abcdef") and N_LEAST_ALIKE == 6
    assert compare_labels(strips(0, 0), strips(0, 0), {"lung": 1}, ["a", "b"]).least_alike == ()
    with pytest.raises(ValueError, match="shape"):
        compare_labels(strips(1), strips(1, 2), {"lung": 1}, ["a"])


@pytest.mark.parametrize("overrides", [(), ("generator=ddpm",), ("generator=ldm",)])
def test_sharing_generated_labels_of_a_generator_that_makes_none_is_refused(overrides: tuple[str, ...]) -> None:
    """Before anything is read or trained."""
    with pytest.raises(InputError, match=r"label\.source.*\n?.*with_labels=true"):
        composed("demo", *overrides, "label.source=generated")
    assert composed("demo", *WITH_LABELS, "label.source=generated").label.source == "generated"


def test_unknown_sources_and_generators_without_labels_are_refused() -> None:
    with pytest.raises(InputError, match=r"label\.source"):
        composed("demo", "label.source=mine")
    with pytest.raises(InputError, match="with_labels"):
        find_generator("stylegan2").check({"with_labels": True})


def test_stages_know_of_labels_only_where_the_generator_makes_them() -> None:
    """Others keep their digests: settings, inputs and code are what they are without the option."""
    concerned = ("slices", "generator", "sample", "filter", "label")
    plain = build_graph(composed("demo", "generator=ddpm"), ("A", "B")).stages
    asked = build_graph(composed("demo", *WITH_LABELS), ("A", "B")).stages
    assert plain.keys() == asked.keys()
    for stage_id, stage in plain.items():
        other = asked[stage_id]
        assert (stage.inputs, stage.code) == (other.inputs, other.code)
        if stage.name not in concerned:
            assert stage.settings == other.settings
            continue
        told, untold = (of.settings["sampling"] if stage.name == "filter" else of.settings for of in (other, stage))
        assert told["labels"] == {"lung": 1} and "labels" not in untold and "shared" not in untold


@pytest.mark.parametrize("shared", ["network", "generated"])
def test_what_is_shared_has_the_size_of_the_shared_images(shared: str, tmp_path: Path, monkeypatch) -> None:
    """Images at half the scale: the network labels them at full size, and generated labels are brought there."""
    info = ImageSetInfo(Intensity("source", (0.0,), (255.0,)), scale=0.5)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 10), dtype=np.uint8)
    save_image_set(tmp_path / "filter", ImageSet(images, (ImageEntry("a"), ImageEntry("b")), info))
    save_labels(tmp_path / "filter", strips(4, 0))
    predicted = np.zeros((2, 8, 20), np.uint8)
    predicted[0, :, :8] = 1
    monkeypatch.setattr("pipeline.stages.label._predicted", lambda *_: predicted)
    settings = {"batch_size": 16, "labels": {"lung": 1}, "shared": shared}
    stage = Stage("label", 0, "A", "", settings, {})
    label(StageContext(stage, tmp_path / "label", {"filter": tmp_path / "filter"}, "cpu", silent))
    agreement = json.loads((tmp_path / "label" / "agreement.json").read_text())
    assert agreement["shared"] == shared and agreement["classes"][0]["dice"] > 0.99
    assert agreement["classes"][0]["n_both_empty"] == 1
    assert io.imread(tmp_path / "label" / "least_alike.png").ndim == 3
    assert load_labels(tmp_path / "label").shape == predicted.shape


def test_the_report_has_no_such_section_without_generated_labels(tmp_path: Path) -> None:
    save_labels(tmp_path / "fold_0" / "label" / "A", strips(1))
    assert labels_section(RunFiles(tmp_path, (0,))) is None


def test_an_experiment_stores_compares_shares_and_shows_generated_labels(tmp_path: Path) -> None:
    """One site, as a user would run it, with ``label.source=generated``."""
    short = ("train.gan.kimg=0.04", "generator.settings.n_snapshots=1", "train.nnunet_epochs=1", "generate.n_images=8")
    ended = run_tiny(*WITH_LABELS, *short, "data.sites=[A]", "label.source=generated", *LESS, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    fold = tmp_path / "runs" / "tiny" / "fold_0"
    (raw,) = (fold / "prepare" / "A" / "raw").glob("Dataset*")
    real, real_maps = load_image_set(fold / "slices" / "A"), load_labels(fold / "slices" / "A")
    for entry, label_map in zip(real.entries, real_maps, strict=True):
        assert np.array_equal(label_map, io.imread(raw / "labelsTr" / f"{entry.case}.png")) and label_map.any()
    for name in ("sample", "filter"):
        assert load_labels(fold / name / "A").shape == load_image_set(fold / name / "A").images[:, 0].shape
    kept = load_labels(fold / "filter" / "A")
    assert np.array_equal(load_labels(fold / "label" / "A"), kept)  # the phantom has scale 1
    agreement = json.loads((fold / "label" / "A" / "agreement.json").read_text())
    assert agreement["n_images"] == len(kept) == 8 and agreement["shared"] == "generated"
    assert agreement["generated_share"] == pytest.approx(np.mean(kept > 0))
    assert (fold / "label" / "A" / "least_alike.png").is_file()
    package = verify_package(fold / "share" / "A")
    manifest = package.manifest
    assert manifest.generator["config"]["with_labels"] is True and manifest.generator["n_label_channels"] == 1
    shared = [io.imread(package.folder / manifest.labels_of(case)) for case in manifest.cases]
    assert np.array_equal(shared, kept)
    assert not any(np.array_equal(one, other) for one in shared for other in real_maps)
    assert "or by the generator itself" in (package.folder / "CARD.md").read_text()
    report = (fold / "report.html").read_text()
    for words in ("Generated and predicted labels", "generated labels are shared", "labels by the generator"):
        assert words in report
