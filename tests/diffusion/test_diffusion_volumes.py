"""Volumes of 32 voxels a side, planned by nnU-Net, through the commands: plan, train, kill, resume, sample, NIfTI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import yaml
from support.nnunet_phantoms import mni_template, plan_with_nnunet, read_image, write_image
from support.paths import REPOSITORY

from common.exit_codes import ExitCode
from common.files import write_json
from diffusion import plan, sample, train

N_VOXELS = 32
SPACING_MM = (2.0, 1.5, 1.5)  # of the phantom's files, z, y, x
MNI_MM = 6.0
SHORT = ("--epochs", "2", "--steps-per-epoch", "3", "--device", "cpu")


def write_phantoms(raw: Path) -> None:
    """Bright balls in soft tissue, Hounsfield units, labels inside."""
    rng = np.random.default_rng(0)
    grid = np.indices((N_VOXELS,) * 3)
    for number in range(5):
        centre = rng.uniform(10, 22, (3, 1, 1, 1))
        ball = ((grid - centre) ** 2).sum(0) < 49
        ct = np.where(ball, 200, -80) + rng.normal(0, 15, ball.shape)
        write_image(raw / "imagesTr" / f"p{number}_0000.nii.gz", ct.round().astype(np.int16), SPACING_MM)
        write_image(raw / "labelsTr" / f"p{number}.nii.gz", ball.astype(np.uint8), SPACING_MM)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    write_json(raw / "dataset.json", {**described, "numTraining": 5})


def write_brains(raw: Path) -> None:
    """The average brain at 6 mm, whole and mirrored, T1 with its grey and white matter as labels."""
    t1, grey, white = (mni_template(name)[::6, ::6, ::6].T for name in ("t1", "gm", "wm"))
    labels = np.where(white > 127, 2, np.where(grey > 127, 1, 0)).astype(np.uint8)
    box = tuple(slice(max(0, n // 2 - N_VOXELS // 2), n // 2 + N_VOXELS // 2) for n in t1.shape)
    for number in range(5):
        side = slice(None, None, -1 if number % 2 else 1)
        image = (t1[box] * (1 + number / 50)).astype(np.float32)[..., side]
        write_image(raw / "imagesTr" / f"b{number}_0000.nii.gz", image, (MNI_MM,) * 3)
        write_image(raw / "labelsTr" / f"b{number}.nii.gz", labels[box][..., side], (MNI_MM,) * 3)
    described = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "grey": 1, "white": 2}}
    write_json(raw / "dataset.json", {**described, "numTraining": 5, "file_ending": ".nii.gz"})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("volumes")
    for write, name in ((write_phantoms, "Dataset001_Balls"), (write_brains, "Dataset010_MNI152")):
        write(root / "raw" / name)
        plan_with_nnunet(root / "raw" / name, root / "preprocessed", ("3d_fullres",))
    return root


@pytest.fixture(autouse=True)
def _folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))


def write_small_plan(dataset: str, root: Path) -> Path:
    """The plan as the command writes it, with narrow networks: a person may edit the file."""
    target = root / f"plan_{dataset}.yaml"
    assert plan.main([dataset, "--device", "cpu", "--out", str(target)]) == 0
    planned = yaml.safe_load(target.read_text())
    for settings in planned["3D"].values():
        for network in (settings["denoiser"], settings["autoencoder"]):
            if network is not None:
                network["channels"] = [8 * width // network["channels"][0] for width in network["channels"]]
        settings["batch_size"] = 2
    target.write_text(yaml.safe_dump(planned))
    return target


@pytest.mark.parametrize(
    ("dataset", "name", "model", "spacing_mm", "lowest", "highest"),
    [
        ("1", "Dataset001_Balls", "ldm", SPACING_MM, -130, 250),
        ("10", "Dataset010_MNI152", "ddpm", (MNI_MM,) * 3, 0, 280),
    ],
)
def test_volumes_train_resume_and_are_sampled_in_their_own_geometry_and_units(
    root: Path, dataset: str, name: str, model: str, spacing_mm: tuple[float, ...], lowest: float, highest: float
) -> None:
    """Defect 17: samples of the original had neither; 12: the size is that of the strides in use; 18: names of gifs."""
    small = write_small_plan(dataset, root)
    planned = yaml.safe_load(small.read_text())["3D"][model]
    for size, *strides in zip(planned["image_size"], *planned["denoiser"]["strides"]):
        assert 24 <= size <= 40 and size % np.prod(strides) == 0
    command = [dataset, "--dimensions", "3D", "--model", model, "--fold", "1", "--plan", str(small), *SHORT]
    assert train.main(command) == 0
    folder = root / "results" / name / f"diffusion_3D_{model}" / "fold_1"
    assert (folder / "sample_sheet.gif").is_file() and not (folder / "training.safetensors").exists()
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert sum("val_loss" in row for row in rows) == 2
    arguments = ["--checkpoint", str(folder / "generator.safetensors"), "--n", "2", "--evaluations", "3"]
    assert sample.main([*arguments, "--out", str(root / model), "--device", "cpu", "--sheet"]) == 0
    files = sorted((root / model / "imagesTr").glob("*.nii.gz"))
    assert len(files) == 2
    described = json.loads((root / model / "dataset.json").read_text())
    assert described["numTraining"] == 2 and described["file_ending"] == ".nii.gz"
    for file in files:
        written = read_image(file)
        assert written.GetSpacing() == pytest.approx(spacing_mm[::-1])
        values = SimpleITK.GetArrayFromImage(written)
        assert lowest <= values.min() < values.max() <= highest


def test_a_killed_command_resumes_and_ends_as_an_undisturbed_one(root: Path, tmp_path: Path) -> None:
    """By the signal that nobody can catch, in a process of its own."""
    assert plan.main(["1", "--device", "cpu"]) == 0
    command = [
        "1",
        "--dimensions",
        "3D",
        "--model",
        "ddpm",
        "--epochs",
        "3",
        "--steps-per-epoch",
        "2",
        "--device",
        "cpu",
    ]
    stopped = tmp_path / "stopped"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion.train", *command, "--out", str(stopped)], env=environment
    )
    while process.poll() is None and not (stopped / "training.safetensors").is_file():
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()
    assert train.main([*command, "--out", str(stopped)]) == 0
    assert train.main([*command, "--out", str(tmp_path / "whole")]) == 0
    assert (stopped / "generator.safetensors").read_bytes() == (tmp_path / "whole/generator.safetensors").read_bytes()


def test_folds_have_folders_of_their_own_and_bad_input_ends_non_zero(root: Path, capsys, monkeypatch) -> None:
    """Defects 9, 10 and 11."""
    assert plan.main(["1", "--device", "cpu"]) == 0
    command = ["1", "--dimensions", "3D", "--model", "ddpm", *SHORT]
    for wrong in (["7", *command[1:]], [*command, "--fold", "5"], [*command, "--epochs", "0"]):
        assert train.main(wrong) == ExitCode.BAD_INPUT
        assert "way out" in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_results")
    assert train.main(command) == ExitCode.BAD_INPUT and "nnUNet_results" in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_preprocessed")
    assert plan.main(["1"]) == ExitCode.BAD_INPUT and "nnUNet_preprocessed" in capsys.readouterr().err


def test_an_error_nobody_expected_ends_the_command_non_zero(tmp_path: Path, root: Path) -> None:
    """Defect 10: the original caught everything and exited 0."""
    (tmp_path / "out").write_text("a file where a folder is to be")
    small = write_small_plan("1", root)
    command = [
        "1",
        "--dimensions",
        "3D",
        "--model",
        "ddpm",
        "--plan",
        str(small),
        *SHORT,
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(OSError):
        train.main(command)
