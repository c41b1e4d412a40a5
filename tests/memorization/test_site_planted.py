"""The planted-copy audit of a site, by the filter in use: what it finds, what it misses, and what then leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.image_makers import PixelScorer, noise, textures

from common.files import write_json
from common.image_set import ImageEntry, ImageSet, save_image_set
from common.progress import silent
from common.settings import to_dict
from engine.graph import Stage
from engine.run_stage import StageContext
from memorization.calibration import MemorizationConfig
from memorization.filter import attainable_level, dropped_of_calibration, p_values
from memorization.gates import PLANTED_RECALL, GatesConfig
from memorization.planted.copies import KINDS
from memorization.site_audit import OwnedImages, PlantedAudit, find_planted, to_planted_audit
from pipeline.stages.audit import audit_site
from pipeline.stages.calibrate import calibrate_threshold
from pipeline.stages.share import share
from sharing import read_refusal

N_TRAIN, N_HELD_OUT = 10, 4


def sees(references: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A filter that drops what equals a reference in every pixel."""
    index = PixelScorer().index(references)
    return lambda images: index.compare(images).values[:, 0] == 0


def owned(images: np.ndarray, name: str = "p") -> OwnedImages:
    return OwnedImages(images, [f"{name}{i}" for i in range(len(images))])


def audited(judge: Callable[[np.ndarray], np.ndarray], n_copies: int = 20) -> PlantedAudit:
    kinds = [kind for kind in KINDS if kind.name in ("identity", "mirror", "blend")]
    found = find_planted(owned(noise(12)), owned(noise(5, seed=1), "h"), judge, n_copies, 3, kinds)
    return to_planted_audit("fused", "none", 0.05, 12, found, None)


def test_an_index_of_half_the_references_misses_half_of_the_exact_copies_and_one_without_mirror_images_theirs() -> None:
    images = noise(12)
    mirrored = np.concatenate([images, images[..., ::-1], images[..., ::-1, :]])
    recall = {
        name: {kind.kind: kind.recall for kind in audited(sees(index)).kinds}
        for name, index in (("whole", mirrored), ("unmirrored", images), ("half", mirrored[::2]))
    }
    assert recall["whole"] == {"identity": 1, "mirror": 1, "blend": 0}
    assert recall["unmirrored"] == {"identity": 1, "mirror": 0, "blend": 0}
    assert 0.2 < recall["half"]["identity"] < 0.8 and 0.2 < recall["half"]["mirror"] < 0.8


def test_figures_add_up_and_name_the_kinds_missed_most_first() -> None:
    result = audited(sees(noise(12)))  # of 20 + 2 * 20 + 2 * 20 copies the 20 exact ones
    assert (result.n, result.found, result.n_copies) == (100, 20, 20)
    assert result.mean_recall == pytest.approx(1 / 3) and result.recall.missed == ("mirror", "blend")
    assert [(one.kind, one.strength, one.n) for one in result.strengths[:2]] == [("identity", 1, 20), ("mirror", 0, 20)]
    assert sum(one.found for one in result.strengths) == result.found


def test_a_copy_is_mixed_with_another_patients_image_only_also_where_nobody_is_held_out() -> None:
    """Two patients of two equal images each: a blend with a patient's own would be an exact copy."""
    images = OwnedImages(np.repeat(noise(2), 2, axis=0), ["p0", "p0", "p1", "p1"])
    (blend,) = (kind for kind in KINDS if kind.name == "blend")
    found = find_planted(images, images, sees(images.images), 12, 0, [blend])
    assert [one.found for one in found] == [0, 0]


def test_an_image_does_not_calibrate_its_own_judge() -> None:
    """Two images of a patient far above all others: among their own calibration images they seem ordinary."""
    values = np.concatenate([np.linspace(0, 1, 18), [9.0, 9.1]])[:, None]
    patients = np.array([f"p{i}" for i in range(18)] + ["twin", "twin"])
    dropped = dropped_of_calibration(values, patients, 0.06)
    assert dropped[-2:].all() and (p_values(values, values[-2:]) > attainable_level(0.06, 20)).all()
    assert not dropped[:17].any()


class CoarsePixels:
    """Coarse pixels as unit vectors: enough of an embedder."""

    name, dimension, identity = "coarse", 16, {}

    def embed(self, images: np.ndarray, progress: object = silent) -> np.ndarray:
        coarse = images[:, 0, ::8, ::8].reshape(len(images), -1).astype(np.float32) - 128
        return coarse / np.linalg.norm(coarse, axis=1, keepdims=True)


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Runs ``calibrate``, ``audit`` and ``share`` of a site whose samples were all kept; returns ``planted.json``."""
    monkeypatch.setattr("memorization.calibration.build_embedder", lambda *_, **__: CoarsePixels())

    def run(config: MemorizationConfig, gates: GatesConfig, train_on: str = "train", kinds: tuple = KINDS) -> dict:
        monkeypatch.setattr("memorization.site_audit.find_planted", partial(find_planted, kinds=kinds))
        images = textures(N_TRAIN + N_HELD_OUT, seed=1, size=32)
        entries = tuple(
            ImageEntry(f"r{i}", patient=f"p{i}", split="train" if i < N_TRAIN else "val") for i in range(len(images))
        )
        save_image_set(tmp_path / "slices", ImageSet(images, entries))
        (tmp_path / "filter").mkdir(exist_ok=True)
        write_json(tmp_path / "filter" / "filter.json", {"n_sampled": 20})
        np.save(tmp_path / "filter" / "features.npy", CoarsePixels().embed(textures(20, seed=2, size=32)))
        settings = {"memorization": to_dict(config), "gates": to_dict(gates), "train_on": train_on, "mirrored": False}
        inputs = {name: tmp_path / name for name in ("slices", "calibrate", "filter", "audit")}
        for name, function in (("calibrate", calibrate_threshold), ("audit", audit_site)):
            (tmp_path / name).mkdir(exist_ok=True)
            function(StageContext(Stage(name, 0, "A", "", settings, {}), tmp_path / name, inputs, "cpu", silent))
        sharing = StageContext(Stage("share", 0, "A", "", {}, {}), tmp_path / "share", inputs, "cpu", silent)
        if json.loads((tmp_path / "audit" / "audit.json").read_text())["verdict"] == "refused":
            share(sharing)
        planted = tmp_path / "audit" / "planted.json"
        return json.loads(planted.read_text()) if planted.is_file() else {}

    return run


ONLY_PLANTED = GatesConfig(min_measured=0, max_membership_auc=1, min_fld_gap=-1e9, max_frechet_gap=1e9)
CHEAP = ("identity", "mirror", "negative", "rotation", "cutout", "blend")  # the fused rule takes its time
FEATURES_ALONE = MemorizationConfig(rule="percentile")


def test_a_site_whose_filter_sees_features_alone_is_refused_and_told_what_it_misses(stages, tmp_path: Path) -> None:
    planted = stages(FEATURES_ALONE, ONLY_PLANTED)
    assert planted["n"] == 65 and planted["mean_recall"] < 0.8 and planted["rule"] == "percentile"
    refusal = read_refusal(tmp_path / "share")
    assert refusal is not None and PLANTED_RECALL in {gate.name for gate in refusal.failed}
    text = (tmp_path / "share" / "REFUSED.md").read_text()
    assert f"{planted['found']} of 65 planted copies found" in text and "missed most: " in text
    assert "memorization=offline" in text


def test_the_fused_filter_of_the_same_site_finds_them_and_its_honest_images_are_those_held_out(
    stages, tmp_path: Path
) -> None:
    kinds = tuple(replace(kind, strengths=kind.strengths[-1:]) for kind in KINDS if kind.name in CHEAP)
    planted = stages(MemorizationConfig(), ONLY_PLANTED, kinds=kinds)
    gates = {gate["name"]: gate for gate in json.loads((tmp_path / "audit" / "audit.json").read_text())["gates"]}
    assert planted["n"] == planted["found"] == len(CHEAP) and gates[PLANTED_RECALL]["decision"] == "passed"
    assert gates[PLANTED_RECALL]["value"] == planted["mean_recall"]
    assert planted["honest"]["n"] == N_HELD_OUT and "held-out patients" in planted["honest"]["judged"]
    assert (planted["n_references"], planted["level"]) == (N_TRAIN, 1 / (N_TRAIN + N_HELD_OUT + 1))
    assert (tmp_path / "audit" / "planted.png").read_bytes()[:4] == b"\x89PNG"


def test_where_nobody_is_held_out_every_patient_is_judged_against_the_others(stages) -> None:
    planted = stages(FEATURES_ALONE, GatesConfig(enforce=False), train_on="train_and_val")
    assert planted["honest"]["n"] == N_TRAIN + N_HELD_OUT == planted["n_references"]
    assert planted["honest"]["judged"].startswith("images of every patient")
    assert planted["honest"]["dropped"] == 2  # the closest pair, which sets the threshold of 5 % of 14


def test_with_no_copies_to_plant_the_audit_leaves_no_word_of_them(stages, tmp_path: Path) -> None:
    assert stages(FEATURES_ALONE, GatesConfig(enforce=False, n_planted_copies=0)) == {}
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["planted"] is None
