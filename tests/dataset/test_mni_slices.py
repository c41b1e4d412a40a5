"""Slices of a template: square, along three axes, at the distance asked for; a wheel without one is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from common.exit_codes import ExitCode
from dataset.mni_slices import TEMPLATE, main, slices_of


def test_slices_are_square_and_every_so_many_mm() -> None:
    volume = np.arange(20 * 40 * 30).reshape(20, 40, 30).astype(np.uint8)
    slices = dict(slices_of(volume, 7))
    assert sorted(slices) == ["x003", "x010", "y006", "y013", "y020", "y027", "z004", "z011", "z018"]
    assert {name[0]: image.shape for name, image in slices.items()} == {"x": (40, 40), "y": (30, 30), "z": (40, 40)}
    assert np.array_equal(slices["y013"][:, 5:25], np.rot90(volume[:, 13]))


def test_the_template_in_a_wheel_becomes_png_files(tmp_path: Path, capsys) -> None:
    volume = np.random.default_rng(0).uniform(0, 700, (20, 24, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "t.nii.gz")
    wheel = tmp_path / "nilearn-0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "t.nii.gz", f"nilearn/datasets/data/{TEMPLATE}")
    assert main(["--wheel", str(wheel), "--every-mm", "4", "--out", str(tmp_path / "out")]) == 0
    files = sorted((tmp_path / "out").glob("*.png"))
    assert f"{len(files)} slices" in capsys.readouterr().out
    assert np.asarray(Image.open(files[0])).max() > 240 and Image.open(files[0]).size == (24, 24)


def test_a_wheel_without_the_template_is_refused(tmp_path: Path, capsys) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a", "b")
    assert main(["--wheel", str(wheel), "--out", str(tmp_path / "out")]) == ExitCode.BAD_INPUT
    assert "other.whl" in capsys.readouterr().err and not (tmp_path / "out").exists()
