"""Sites check each other's packages: copies of their patients are dropped, names alone cross, answers are hostile."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.packages import cases, facts, write_refused

from common.errors import InputError
from common.files import json_text, write_json
from common.image_set import ImageEntry, ImageSet, ImageSetInfo, Intensity, save_image_set
from common.progress import silent
from common.settings import to_dict
from dataset.slices import encode
from engine.graph import Stage
from engine.run_stage import StageContext
from features.embedders import build_embedder
from memorization.calibration import Calibration, MemorizationConfig
from pipeline.stages.check import check_package
from pipeline.stages.merge import merge
from sharing import (
    PackageError,
    SyntheticCase,
    read_case,
    read_drop_list,
    verify_package,
    write_drop_list,
    write_package,
)
from sharing.schema import SCHEMA_VERSION

PLANS = {
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "patch_size": [12, 20],
            "median_image_size_in_voxels": [12, 20],
            "architecture": {"arch_kwargs": {"strides": [[1, 1]], "kernel_sizes": [[3, 3]]}},
            "normalization_schemes": ["ZScoreNormalization"],
            "spacing": [1.0, 1.0],
            "use_mask_for_norm": [False],
            "batch_size": 2,
        }
    },
    "transpose_forward": [0, 1, 2],
}
MERGE = {
    "dataset_name": "Dataset900_pool",
    "plan_from": "synthetic",
    "plan": {},
    "validation_fraction": 0.25,
    "max_validation_images": 2500,
}


def save_site(folder: Path, images: np.ndarray, info: ImageSetInfo | None = None) -> None:
    """The private folders of a site that takes whatever is next to equal to one of its images for a copy."""
    entries = tuple(ImageEntry(f"r{i}", patient=f"p{i}", split=("train", "val")[i % 2]) for i in range(len(images)))
    image_set = ImageSet(images, entries) if info is None else ImageSet(images, entries, info)
    save_image_set(folder / "slices", image_set)
    calibration = Calibration(1e-6, (0.0, 1e-6), 5.0, "cross_fit", "efficientnet_lite0", 2, 2, 2, (0.0, 1e-6))
    write_json(folder / "calibrate" / "calibration.json", to_dict(calibration))
    features = build_embedder("efficientnet_lite0", batch_size=4, device="cpu").embed(images)
    np.save(folder / "calibrate" / "features.npy", features)
    write_json(folder / "plan" / "plans.json", PLANS)


def run_check(package: Path, site: Path, out: Path) -> None:
    inputs = {"package": package} | {name: site / name for name in ("slices", "calibrate", "plan")}
    settings = {"memorization": to_dict(MemorizationConfig())}
    out.mkdir(parents=True)
    check_package(StageContext(Stage("check", 0, "B", "", settings, {}), out, inputs, "cpu", silent))


def smooth(n: int, seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(1, 256, (n, 1, 3, 5), dtype=np.uint8)
    return blocks.repeat(4, axis=2).repeat(4, axis=3)


def write_flat(folder: Path, images: np.ndarray, site: str) -> None:
    labels = cases(1)[0].labels
    shared = [SyntheticCase(f"{site}_syn_{i}", image[:, None], labels) for i, image in enumerate(images)]
    write_package(folder, shared, facts(site=site), volumetric=False)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_copy_of_another_sites_patient_is_not_pooled_and_only_its_name_crosses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    patients, shared = smooth(6, 0), smooth(4, 1)
    shared[2] = patients[("train", "val").index(split)]
    write_flat(tmp_path / "A", shared, "A")
    write_flat(tmp_path / "B", smooth(4, 2), "B")
    save_site(tmp_path / "site", patients)
    run_check(tmp_path / "A", tmp_path / "site", tmp_path / "check")
    (sent,) = [path for path in (tmp_path / "check").rglob("*") if path.is_file()]
    expected = {"cases": ["A_syn_2"], "checked_by": "B", "package_of": "A", "schema_version": 1}
    assert json.loads(sent.read_text()) == expected and sent.stat().st_size < 120

    monkeypatch.setattr("pipeline.stages.merge.plan_dataset", lambda *_: None)
    inputs = {"package:A": tmp_path / "A", "package:B": tmp_path / "B", "check:B:A": tmp_path / "check"}
    merge(StageContext(Stage("merge", 0, "all", "", MERGE, {}), tmp_path / "out", inputs, "cpu", silent))
    raw = tmp_path / "out" / "raw" / "Dataset900_pool"
    pooled = {path.name for path in raw.rglob("*.png")}
    assert not [name for name in pooled if name.startswith("A_syn_2")]
    assert len(pooled) == 2 * 7 and json.loads((raw / "dataset.json").read_text())["numTraining"] == 7
    splits = json.loads((tmp_path / "out" / "raw" / "splits.json").read_text())
    assert len({*splits["train"], *splits["val"]}) == 7


def test_of_volumes_a_case_with_one_copied_slice_goes_whole(tmp_path: Path) -> None:
    described = replace(facts(("CT",)), labels={"organ": 1}, spacing_mm=(4.0, 1.0, 1.0))
    slices = smooth(4, 1).astype(np.float32).reshape(2, 1, 2, 12, 20) - 1000  # two cases of two slices, in HU
    shared = [SyntheticCase(f"A_syn_{i}", image, np.ones((2, 12, 20), np.uint8)) for i, image in enumerate(slices)]
    write_package(tmp_path / "A", shared, described, volumetric=True)
    package = verify_package(tmp_path / "A")
    np.testing.assert_array_equal(read_case(package, "A_syn_1"), slices[1])
    info = ImageSetInfo(Intensity("normalised", (-1000.0,), (0.0,)), volumetric=True)
    patients = smooth(4, 5).astype(np.float32) - 1000
    patients[3] = slices[1, :, 1]
    save_site(tmp_path / "site", encode(patients, info.intensity, np.dtype(np.uint16)), info)
    run_check(tmp_path / "A", tmp_path / "site", tmp_path / "check")
    assert read_drop_list(tmp_path / "check", "B", package) == {"A_syn_1"}


def test_a_pool_of_which_others_name_every_case_is_an_error(tmp_path: Path) -> None:
    for site, other, seed in (("A", "B", 1), ("B", "A", 2)):
        write_flat(tmp_path / site, smooth(4, seed), site)
        package = verify_package(tmp_path / site)
        write_drop_list(tmp_path / f"check_{site}", other, package, set(package.manifest.cases))
    inputs = {f"package:{site}": tmp_path / site for site in "AB"}
    inputs |= {"check:B:A": tmp_path / "check_A", "check:A:B": tmp_path / "check_B"}
    with pytest.raises(InputError, match="every case of A, B"):
        merge(StageContext(Stage("merge", 0, "all", "", MERGE, {}), tmp_path / "out", inputs, "cpu", silent))


def test_a_refusal_that_no_site_writes_is_no_reason_to_check_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "B" / "refused.json", {"schema_version": SCHEMA_VERSION, "why": "a gate"})
    with pytest.raises(PackageError, match="why"):
        run_check(tmp_path / "B", tmp_path / "site", tmp_path / "check")


def test_a_package_that_its_site_refused_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flat(tmp_path / "A", smooth(4, 1), "A")
    write_refused(tmp_path / "B")
    run_check(tmp_path / "B", tmp_path / "site", tmp_path / "check")
    assert not list((tmp_path / "check").iterdir())
    monkeypatch.setattr("pipeline.stages.merge.plan_dataset", lambda *_: None)
    inputs = {"package:A": tmp_path / "A", "package:B": tmp_path / "B", "check:A:B": tmp_path / "check"}
    merge(StageContext(Stage("merge", 0, "all", "", MERGE, {}), tmp_path / "out", inputs, "cpu", silent))
    assert len(list((tmp_path / "out").rglob("*.png"))) == 8


GOOD = {"cases": ["A_syn_1"], "checked_by": "B", "package_of": "A", "schema_version": 1}
HOSTILE = {
    "an unknown case": {**GOOD, "cases": ["A_syn_9"]},
    "a path": {**GOOD, "cases": ["../../B/imagesTr/x"]},
    "an extra key": {**GOOD, "distances": [0.1]},
    "a missing key": {key: value for key, value in GOOD.items() if key != "checked_by"},
    "another's name": {**GOOD, "checked_by": "C"},
    "another package": {**GOOD, "package_of": "B"},
    "a case twice": {**GOOD, "cases": ["A_syn_1", "A_syn_1"]},
    "no text": {**GOOD, "cases": [1]},
    "a later schema": {**GOOD, "schema_version": 2},
    "a huge list": {**GOOD, "cases": [f"A_syn_{i}" for i in range(20_000)]},
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_answer_is_refused(tmp_path: Path, content: dict) -> None:
    write_flat(tmp_path / "A", smooth(4, 1), "A")
    package = verify_package(tmp_path / "A")
    write_json(tmp_path / "check" / "drop.json", GOOD)
    assert read_drop_list(tmp_path / "check", "B", package) == {"A_syn_1"}
    (tmp_path / "check" / "drop.json").write_text(json_text(content))
    with pytest.raises(PackageError, match=r"drop\.json"):
        read_drop_list(tmp_path / "check", "B", package)


def test_a_link_another_file_or_no_file_is_no_answer(tmp_path: Path) -> None:
    write_flat(tmp_path / "A", smooth(4, 1), "A")
    package = verify_package(tmp_path / "A")
    write_json(tmp_path / "elsewhere.json", GOOD)
    for name in ("link", "two", "none"):
        (tmp_path / name).mkdir()
    os.symlink(tmp_path / "elsewhere.json", tmp_path / "link" / "drop.json")
    write_json(tmp_path / "two" / "drop.json", GOOD)
    write_json(tmp_path / "two" / "more.json", GOOD)
    for name in ("link", "two", "none", "nowhere"):
        with pytest.raises(PackageError):
            read_drop_list(tmp_path / name, "B", package)
