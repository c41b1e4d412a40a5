"""Merging: every package is checked before anything of any is used, and nothing is used that was not checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from packages import cases, facts, write_volumes

from common.errors import InputError
from common.files import write_text
from common.progress import silent
from pipeline.graph import Stage
from pipeline.run_stage import StageContext
from pipeline.stages import exchange
from sharing import Package, PackageError, verify_package, write_package

SETTINGS = {
    "dataset_name": "Dataset900_pool",
    "plan_from": "synthetic",
    "plan": {},
    "validation_fraction": 0.25,
    "max_validation_images": 2500,
}


@pytest.fixture
def context(tmp_path, monkeypatch) -> StageContext:
    """The merge of two good packages, of sites A and B; the planning after it is left out."""
    for site in "AB":
        write_package(tmp_path / site, cases(1, site=site), facts(site=site), volumetric=False)
    monkeypatch.setattr(exchange, "plan_dataset", lambda *_: None)
    inputs = {f"package:{site}": tmp_path / site for site in "AB"}
    stage = Stage("merge", 0, "all", "pipeline.stages.exchange:merge", SETTINGS, {})
    return StageContext(stage, tmp_path / "out", inputs, "cpu", silent)


def pooled(context: StageContext) -> list[str]:
    raw = context.out / "raw"
    return sorted(path.relative_to(raw / "Dataset900_pool").as_posix() for path in raw.rglob("*.png"))


def test_good_packages_are_pooled(context):
    exchange.merge(context)
    images = [f"imagesTr/{site}_syn_{number}_0000.png" for site in "AB" for number in range(4)]
    labels = [f"labelsTr/{site}_syn_{number}.png" for site in "AB" for number in range(4)]
    assert pooled(context) == images + labels
    assert all((context.out / "raw" / "Dataset900_pool" / name).is_file() for name in images + labels)


def test_one_bad_package_and_nothing_of_any_is_pooled(context, tmp_path):
    (tmp_path / "B" / "labelsTr" / "B_syn_3.png").write_bytes(b"other")
    with pytest.raises(PackageError, match="B_syn_3"):
        exchange.merge(context)
    assert not context.out.exists()


def test_a_file_that_was_not_checked_is_not_pooled(context, monkeypatch):
    """Slipped in between check and use."""

    def verify(folder: Path) -> Package:
        package = verify_package(folder)
        write_text(folder / "imagesTr" / "late_0000.png", "x")
        write_text(folder / "labelsTr" / "late.png", "x")
        return package

    monkeypatch.setattr(exchange, "verify_package", verify)
    exchange.merge(context)
    assert len(pooled(context)) == 16 and not [name for name in pooled(context) if "late" in name]


def test_a_package_in_anothers_place_is_refused(context, tmp_path):
    """Its files would have the names of the other's."""
    shutil.rmtree(tmp_path / "B")
    shutil.copytree(tmp_path / "A", tmp_path / "B")
    with pytest.raises(InputError, match="a package of site A"):
        exchange.merge(context)


def test_packages_of_different_kinds_are_refused(context, tmp_path):
    shutil.rmtree(tmp_path / "A")
    write_volumes(tmp_path / "A")
    with pytest.raises(InputError, match="channel_names"):
        exchange.merge(context)
    assert not context.out.exists()
