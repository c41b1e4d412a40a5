"""The plan's file and its command, and the datasets that it is written for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.nnunet_plans import (
    brain,
    prostate,
    small_2d,
)

from common.errors import InputError
from common.settings import to_dict
from diffusion.plan import PLAN_FILE, main, read_plan
from diffusion.planning import (
    with_length,
)
from nnunetv2_mod.nnunet_folder import find_dataset


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of preprocessed datasets with 1, of images, and 100, of volumes."""
    folder = tmp_path / "preprocessed"
    write_dataset(folder / "Dataset001_X", small_2d())
    write_dataset(folder / "Dataset100_Y", brain())
    (folder / "notes").mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return folder


def write_dataset(folder: Path, plans: dict[str, Any], n_cases: int = 10) -> None:
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    described = {"numTraining": n_cases, "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
    (folder / "dataset.json").write_text(json.dumps(described))


def test_defect_11_an_id_is_a_number_and_not_the_beginning_of_a_name(preprocessed: Path) -> None:
    for text in ("1", "001", "Dataset001_X", str(preprocessed / "Dataset001_X")):
        assert find_dataset(text).name == "Dataset001_X"
    assert find_dataset("100").preprocessed == preprocessed / "Dataset100_Y"
    assert find_dataset("1").plans == small_2d() and find_dataset("1").dataset_json["numTraining"] == 10
    with pytest.raises(InputError, match="no dataset '10'; those there: Dataset001_X, Dataset100_Y"):
        find_dataset("10")
    write_dataset(preprocessed / "Dataset001_Other", small_2d())
    with pytest.raises(InputError, match="one of Dataset001_Other, Dataset001_X"):
        find_dataset("1")


def test_defect_11_a_variable_that_is_not_set_is_named(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(InputError, match="nnUNet_preprocessed: not set"):
        find_dataset("1")
    monkeypatch.chdir(preprocessed)
    assert find_dataset("Dataset001_X").preprocessed == preprocessed / "Dataset001_X"
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed / "gone"))
    with pytest.raises(InputError, match="no such folder"):
        find_dataset("1")


def test_defect_11_plans_without_volumes_are_planned_without_them(
    preprocessed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert main(["1", "--device", "cpu"]) == 0
    assert "3D: left out, the plans have no configuration 3d_fullres" in caplog.text
    assert read_plan(preprocessed / "Dataset001_X" / PLAN_FILE, "2D", "ddpm").image_size == (64, 48)


def test_the_raw_dataset_is_found_beside(preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_dataset("1").raw is None
    (tmp_path / "raw" / "Dataset001_X").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert find_dataset("1").raw == tmp_path / "raw" / "Dataset001_X" and find_dataset("100").raw is None
    (preprocessed / "Dataset001_X" / "dataset.json").rename(tmp_path / "raw" / "Dataset001_X" / "dataset.json")
    assert find_dataset("1").dataset_json["numTraining"] == 10


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("nnUNetPlans.json", None, "no such plans"),
        ("nnUNetPlans.json", "{", "not JSON"),
        ("nnUNetPlans.json", "[]", "a list in place"),
        ("dataset.json", None, "no such file"),
        ("dataset.json", "{}", "numTraining is None"),
        ("nnUNetPlans.json", '{"configurations": {}}', "neither"),
    ],
)
def test_bad_input_ends_with_1_and_says_why(
    file: str, content: str | None, message: str, preprocessed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = preprocessed / "Dataset001_X" / file
    path.unlink() if content is None else path.write_text(content)
    assert main(["1"]) == 1
    error = capsys.readouterr().err
    assert message in error and "way out" in error and file in error
    assert not (preprocessed / "Dataset001_X" / PLAN_FILE).exists()


def test_a_failure_that_is_no_bad_input_is_not_swallowed(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 10: the original caught everything and ended with 0."""

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("diffusion.plan.plan_text", fail)
    with pytest.raises(ZeroDivisionError):
        main(["1"])


@pytest.mark.parametrize("channels", ["0,4", "1,1"])
def test_channels_that_are_not_there(channels: str, preprocessed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["100", "--channels", channels]) == 1
    assert "--channels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["100", "--channels", "[0,1]"])


def test_the_plan_is_read_as_it_was_derived(preprocessed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "plan.yaml"
    arguments = ["--channels", "0,2", "--labels", "--out", str(out), "--device", "cuda", "--memory-gib", "24"]
    assert main(["100", *arguments]) == 0
    text = out.read_text()
    assert text.startswith("#") and "&id" not in text and "strides: [[2, 2, 2], [2, 2, 2]]" in text
    assert "channels: [0, 2]" in text and text.count("estimated_memory_gib:") == 4
    assert [line for line in text.splitlines() if line and line[0] not in " #"] == [
        "dataset:",
        "machine:",
        "2D:",
        "3D:",
    ]
    made = read_plan(out, "3D", "ldm")
    own = made.autoencoder
    assert own is not None
    assert made.n_channels == 2 and made.n_label_channels == 2 and own.n_channels == 4
    assert (own.n_epochs, own.steps_per_epoch, made.n_epochs, made.steps_per_epoch) == (300, 250, 300, 250)
    assert made.kimg == pytest.approx(300 * 250 * (own.batch_size + made.batch_size) / 1000)
    assert with_length(made, made.kimg) == made  # lengths and shares agree
    assert own.adversarial_from_step == 300 * 250 // 4
    pixels = read_plan(out, "2D", "ddpm")
    assert pixels.autoencoder is None and pixels.n_steps == 200 * 250 and pixels.config.n_snapshots == 200
    assert to_dict(read_plan(out, "2D", "ddpm")) == to_dict(pixels)


def test_a_model_that_does_not_fit_is_left_out(preprocessed: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = prostate()
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [250, 250, 250]
    write_dataset(preprocessed / "Dataset007_Z", plans)
    with caplog.at_level(logging.INFO):
        assert main(["7", "--device", "cpu", "--memory-gib", "16"]) == 0
    assert "3D ddpm: left out" in caplog.text and "(256, 256, 256)" in caplog.text
    path = preprocessed / "Dataset007_Z" / PLAN_FILE
    assert read_plan(path, "3D", "ldm").image_size == (256, 256, 256)
    with pytest.raises(InputError, match=r"those there \(3D ldm\)"):
        read_plan(path, "3D", "ddpm")


def test_a_plan_edited_by_hand(preprocessed: Path) -> None:
    path = preprocessed / "Dataset001_X" / PLAN_FILE
    assert main(["1", "--device", "cpu"]) == 0
    whole = path.read_text()
    first, rest = whole.split("ldm:")
    for before, after, message in (
        ("\n    batch_size: 8", "\n    batchsize: 8", "unknown key 'batchsize'"),
        ("\n    learning_rate", "\n    rate: 1\n    learning_rate", "unknown key 'rate'"),
        ("image_size: [64, 48]", "image_size: [64, 44]", "cannot be divided by the strides"),
        ("strides: [[2, 2]]", "strides: [[2, 2], [2, 2]]", "2 widths, 2 strides and 1 kernels"),
        ("first_kernel: [3, 3]", "first_kernel: [3]", "other axes"),
        ("snapshot: heldout", "snapshot: best", "'best' is not allowed"),
        ("\n    n_channels: 1\n", "\n", "'n_channels' is missing"),
    ):
        assert before in rest
        path.write_text(f"{first}ldm:{rest.replace(before, after, 1)}")
        with pytest.raises(InputError, match=message):
            read_plan(path, "2D", "ldm")
    for content, message in (("a: [", "not YAML"), ("[]", "no model 2D ddpm"), ("2D: {ddpm: 3}", "no model")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_plan(path, "2D", "ddpm")
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_plan(path, "2D", "ddpm")
