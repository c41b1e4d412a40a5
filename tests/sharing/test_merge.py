"""Merging: every package is checked before anything of any is used, and nothing is used that was not checked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.packages import audit_of, cases, facts, write_refused, write_volumes

from common.errors import InputError
from common.files import json_text, write_text
from common.progress import silent
from engine.graph import Stage
from engine.run_stage import StageContext
from pipeline.stages.merge import merge
from sharing import Package, PackageError, verify_package, write_package
from sharing.verify import main

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
    monkeypatch.setattr("pipeline.stages.merge.plan_dataset", lambda *_: None)
    inputs = {f"package:{site}": tmp_path / site for site in "AB"}
    stage = Stage("merge", 0, "all", "pipeline.stages.merge:merge", SETTINGS, {})
    return StageContext(stage, tmp_path / "out", inputs, "cpu", silent)


def pooled(context: StageContext) -> list[str]:
    raw = context.out / "raw"
    return sorted(path.relative_to(raw / "Dataset900_pool").as_posix() for path in raw.rglob("*.png"))


def test_good_packages_are_pooled(context):
    merge(context)
    images = [f"imagesTr/{site}_syn_{number}_0000.png" for site in "AB" for number in range(4)]
    labels = [f"labelsTr/{site}_syn_{number}.png" for site in "AB" for number in range(4)]
    assert pooled(context) == images + labels
    assert all((context.out / "raw" / "Dataset900_pool" / name).is_file() for name in images + labels)


def test_one_bad_package_and_nothing_of_any_is_pooled(context, tmp_path):
    (tmp_path / "B" / "labelsTr" / "B_syn_3.png").write_bytes(b"other")
    with pytest.raises(PackageError, match="B_syn_3"):
        merge(context)
    assert not context.out.exists()


def test_a_file_that_was_not_checked_is_not_pooled(context, monkeypatch):
    """Slipped in between check and use."""

    def verify(folder: Path) -> Package:
        package = verify_package(folder)
        write_text(folder / "imagesTr" / "late_0000.png", "x")
        write_text(folder / "labelsTr" / "late.png", "x")
        return package

    monkeypatch.setattr("pipeline.stages.merge.verify_package", verify)
    merge(context)
    assert len(pooled(context)) == 16 and not [name for name in pooled(context) if "late" in name]


def test_a_package_in_anothers_place_is_refused(context, tmp_path):
    """Its files would have the names of the other's."""
    shutil.rmtree(tmp_path / "B")
    shutil.copytree(tmp_path / "A", tmp_path / "B")
    with pytest.raises(InputError, match="a package of site A"):
        merge(context)


def refuse(folder: Path) -> None:
    shutil.rmtree(folder)
    write_refused(folder)


def test_a_refused_site_is_left_out_by_name_and_the_others_are_pooled(context, tmp_path, caplog):
    refuse(tmp_path / "B")
    merge(context)
    assert len(pooled(context)) == 8 and not [name for name in pooled(context) if "/B_" in name]
    assert "site B refused to export: C_T: -9 is beyond its limit; what would help: more patients" in caplog.text


def test_a_pool_of_refused_sites_alone_is_refused_with_the_way_out(context, tmp_path):
    refuse(tmp_path / "A")
    refuse(tmp_path / "B")
    with pytest.raises(InputError, match=r"every site refused.*A, B"):
        merge(context)


def test_the_command_says_who_refused_and_why(tmp_path, context, capsys):
    refuse(tmp_path / "B")
    assert main([str(tmp_path / "B")]) == 3
    assert "site B refused to export it" in (said := capsys.readouterr().err) and "C_T: -9" in said
    assert (
        "| C_T | 0.4 | standard errors | >= 0.9 | 0.001 | <= 0.0083 | **failed** |"
        in (tmp_path / "B" / "REFUSED.md").read_text()
    )


def rewritten(**changes: object) -> Callable[[Path], object]:
    def mutate(folder: Path) -> None:
        content = json.loads((folder / "refused.json").read_text()) | changes
        (folder / "refused.json").write_text(json_text(content))

    return mutate


def linked(folder: Path) -> None:
    shutil.move(folder / "refused.json", folder.parent / "elsewhere")
    (folder / "refused.json").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("mutate", "words"),
    [
        (rewritten(site="../A"), "names no site"),
        (rewritten(failed=[]), "other gates than its audit"),
        (rewritten(schema_version=99), "schema_version 99"),
        (rewritten(patients=["Doe"]), "patients"),
        (rewritten(failed=[{"name": "C_T", "reason": "\x1b[2J", "what_would_help": ""}]), "control character"),
        (rewritten(failed=[{"name": "mine", "reason": "", "what_would_help": ""}]), "other gates than its audit"),
        (rewritten(schema_version=4), "let both sites use the same release"),
        (rewritten(audit={**audit_of(("FLD gap",)), "enforced": True}), "other gates than its audit"),
        (rewritten(audit=audit_of(("C_T",))), "gates were not enforced"),
        (rewritten(audit={**audit_of(), "familywise_level": 2.0}), r"familywise_level 2\.0"),
        (lambda folder: os.truncate(folder / "refused.json", 2**20), "is no file of at most"),
        (linked, "is no file of at most"),
    ],
)
def test_a_refusal_that_no_site_writes_is_refused(context, tmp_path, mutate, words):
    refuse(tmp_path / "B")
    mutate(tmp_path / "B")
    with pytest.raises(PackageError, match=words):
        merge(context)
    assert not context.out.exists()


def test_a_package_with_a_refusal_slipped_in_is_no_package_and_no_refusal(context, tmp_path):
    """A refusal beside a manifest would let a sender choose who sees which."""
    (tmp_path / "B" / "refused.json").write_text("{}")
    with pytest.raises(PackageError, match="no name of a file in a package"):
        merge(context)


def test_packages_of_different_kinds_are_refused(context, tmp_path):
    shutil.rmtree(tmp_path / "A")
    write_volumes(tmp_path / "A")
    with pytest.raises(InputError, match="channel_names"):
        merge(context)
    assert not context.out.exists()
