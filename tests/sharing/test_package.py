"""What leaves a site: a valid nnU-Net raw dataset, a manifest that fits it, and nothing of a patient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skimage import io
from support.packages import audit_of, cases, facts, write_volumes

from memorization.gates import PLANTED_RECALL, PlantedRecall
from memorization.site_audit import SiteAudit
from pipeline.stages.share import shared_audit
from pipeline.synthetic_cases import split_synthetic
from sharing import verify_package, write_package


@pytest.mark.parametrize("n_channels,dtype", [(1, np.uint8), (1, np.uint16), (3, np.uint8)])
def test_a_package_holds_its_pixels_and_passes_its_own_check(tmp_path: Path, n_channels: int, dtype: type) -> None:
    written = cases(n_channels, dtype=dtype)
    write_package(tmp_path, written, facts(("grey",) if n_channels == 1 else ("R", "G", "B")), volumetric=False)
    manifest = verify_package(tmp_path, written_here=True).manifest
    assert manifest.n_cases == manifest.n_images == 4
    read = io.imread(tmp_path / "imagesTr" / "A_syn_2_0000.png")
    expected = written[2].image[0, 0] if n_channels == 1 else np.moveaxis(written[2].image[:, 0], 0, -1)
    assert read.dtype == dtype and np.array_equal(read, expected)  # 12 rows, 20 columns: not swapped
    assert np.array_equal(io.imread(tmp_path / "labelsTr" / "A_syn_2.png"), written[2].labels[0])


def test_a_volume_package_carries_spacing_but_no_scanner_geometry(tmp_path: Path) -> None:
    """D28: the original shipped a real patient's spacing, origin, direction and crop with every synthetic case."""
    import SimpleITK

    write_volumes(tmp_path)
    verify_package(tmp_path, written_here=True)
    volume = SimpleITK.ReadImage(str(tmp_path / "imagesTr" / "A_syn_0_0000.nii.gz"))
    assert volume.GetSpacing() == (0.75, 0.5, 4.0) and volume.GetOrigin() == (0, 0, 0)
    assert volume.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert SimpleITK.GetArrayFromImage(volume).min() == -700.0


def test_nothing_but_images_labels_json_and_the_card_is_in_a_package(tmp_path: Path) -> None:
    """D28: no pickle, no fingerprint, and in the manifest only the listed keys."""
    write_package(tmp_path, cases(1), facts(), volumetric=False)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".png", ".json", ".md"}
    for path in tmp_path.rglob("*.png"):
        assert not io.imread(path).dtype.hasobject and b"tEXt" not in path.read_bytes()


def test_the_card_says_which_gates_were_passed_and_which_were_not_enforced(tmp_path: Path) -> None:
    write_package(tmp_path / "passed", cases(1), facts(), volumetric=False)
    audit = {"audit": audit_of(("C_T", "FLD gap"))}
    write_package(tmp_path / "failed", cases(1), replace(facts(), privacy=facts().privacy | audit), volumetric=False)
    passed, failed = ((tmp_path / name / "CARD.md").read_text() for name in ("passed", "failed"))
    assert "**Every gate was measured and passed.**" in passed and "**failed**" not in passed
    assert "**The site did not enforce its gates (gates.enforce=false).** **Gates that failed: C_T 0.4" in failed
    assert "| C_T | 0.4 | standard errors | >= 0.9 | 0.001 | <= 0.0083 | **failed** |" in failed


def test_the_card_says_what_the_filter_found_of_planted_copies_or_that_none_were_planted(tmp_path: Path) -> None:
    write_package(tmp_path / "planted", cases(1), facts(), volumetric=False)
    without = {"audit": audit_of(unmeasured=(PLANTED_RECALL,)) | {"planted": None}}
    write_package(tmp_path / "none", cases(1), replace(facts(), privacy=facts().privacy | without), volumetric=False)
    planted, none = (" ".join((tmp_path / name / "CARD.md").read_text().split()) for name in ("planted", "none"))
    assert (
        "planted 65 copies of its own training images" in planted and "found 63 of them (95.0% as the mean" in planted
    )
    assert "dropped 7%; how many these were is not told" in planted
    assert (
        "**not measured**: the site planted none" in none
        and "| planted-copy recall | | share of copies, mean over kinds | >= 0.9 | | | **not measurable** |" in none
    )
    assert f"**Gates that were not measurable: {PLANTED_RECALL}; nothing is known of what they look for.**" in none


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_package(tmp_path / name, cases(1), facts(), volumetric=False)
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(("sizes", "n_val"), [((10, 10), 4), ((1, 1), 1), ((1,), 1), ((2, 1), 1), ((1, 30), 6)])
def test_a_pool_always_has_cases_that_train_and_cases_that_validate(sizes, n_val):
    """Also where a site's slices fill a single stack: then that stack used to validate, and nothing trained."""
    pooled = {str(site): ([f"{site}_{i}" for i in range(size)], size) for site, size in enumerate(sizes)}
    splits = split_synthetic(pooled, {"validation_fraction": 0.2, "max_validation_images": 2500}, 0)
    assert splits["train"] and len(splits["val"]) == n_val
    assert {*splits["train"], *splits["val"]} == {name for names, _ in pooled.values() for name in names}
    assert not set(splits["train"]) & set(splits["val"]) or sum(sizes) == 1


def test_of_honest_images_their_share_leaves_and_not_their_number() -> None:
    """1 of 13 is 0.0769: with four digits only 13 images, or many more, can give it."""
    planted = PlantedRecall(65, 64, 0.98387, ("blur",), 1 / 13)
    figures = SiteAudit("passed", True, 0.05, 18, 12, 13, 4, 5, 4, 1, 4, (), None, planted, ())
    shared = shared_audit(figures).planted
    assert shared is not None and (shared.n, shared.found, shared.mean_recall) == (65, 64, 0.9839)
    assert shared.honest_dropped_share == 0.08
