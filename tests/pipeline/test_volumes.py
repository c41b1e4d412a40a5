"""Volumes through the whole experiment: CT whose coarse axis is the last one of the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from support.tiny_experiment import run_tiny

from common.image_set import ImageEntry, ImageSet, ImageSetInfo, Intensity, load_image_set
from pipeline.synthetic_cases import what_images_are

N_COARSE, HEIGHT, WIDTH = 7, 36, 32  # slices along the coarse axis, and their size
COARSE_MM = 3.0


def write_volumes(root: Path) -> None:
    """Two sites of six patients: a bright cylinder in noise below 0 HU, 3 mm apart along x, 1 mm along z and y."""
    rng = np.random.default_rng(0)
    lines = ["image,patient,site"]
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for site in "AB":
        for patient in range(6):
            rows, columns, slices = np.mgrid[:HEIGHT, :WIDTH, :N_COARSE]
            organ = np.hypot(rows - rng.integers(12, 22), columns - rng.integers(12, 20)) < 7
            organ &= slices > 0
            ct = (rng.normal(-300, 40, organ.shape) + 250 * organ).astype(np.int16)
            name = f"{site}{patient}.nii.gz"
            for part, array in (("images", ct), ("masks", organ.astype(np.uint8))):
                volume = SimpleITK.GetImageFromArray(array)  # array axes are z, y, x
                volume.SetSpacing((COARSE_MM, 1.0, 1.0))
                SimpleITK.WriteImage(volume, str(root / part / name))
            lines.append(f"{name},{site}{patient},{site}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("volumes")
    write_volumes(cwd / "source")
    source = ("data.kind=folder", f"data.root={cwd / 'source'}", "data.patient_column=patient", "data.site_column=site")
    baselines = ("federated.strategies=[fedavg,dsl]", "federated.dsl.n_iterations=4", "federated.dsl.base_channels=8")
    small = ("federated.dsl.n_blocks=1", "federated.dsl.batch_size=2", "label.stack_size=15")
    ended = run_tiny(*source, *baselines, *small, "data.channel_names=[CT]", cwd=cwd)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return cwd / "runs" / "tiny"


def test_slices_are_taken_and_thinned_along_the_coarse_axis(run: Path) -> None:
    """D26: the original thinned by the spacing of the file's first axis, whatever axis it sliced."""
    slices = load_image_set(run / "fold_0" / "slices" / "A")
    splits = json.loads((run / "fold_0/prepare/A/raw/splits.json").read_text())
    kept_per_case = len(range(0, N_COARSE, 2))  # 3 mm apart: every second one is at least 4 mm from the next
    assert len(slices) == kept_per_case * (len(splits["train"]) + len(splits["val"]))
    assert slices.images.dtype == np.uint16 and slices.info.volumetric


def test_no_kept_image_is_dropped_by_stacking_and_hounsfield_units_stay_negative(run: Path) -> None:
    """D16: up to 49 images were lost to stacks of 50. D5, D6: negative intensities became 0."""
    kept = json.loads((run / "fold_0/filter/A/filter.json").read_text())["n_kept"]
    manifest = json.loads((run / "fold_0/share/A/manifest.json").read_text())
    assert manifest["n_images"] == kept and manifest["n_cases"] == -(-kept // 15)
    assert manifest["intensity_space"] == "source"
    volumes = sorted((run / "fold_0/share/A/imagesTr").glob("*.nii.gz"))
    arrays = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in volumes]
    assert sum(len(array) for array in arrays) == kept
    assert min(array.min() for array in arrays) < 0


def test_federated_baselines_run_on_volumes_too(run: Path) -> None:
    """DSL's synthetic stacks are in Hounsfield units as well, and every model is tested on the real volumes."""
    models = {folder.name for folder in (run / "fold_0/evaluate/B").iterdir()}
    assert models >= {"real-A", "syn-real-A", "fedavg-all", "dsl-all"}
    stacks = sorted((run / "fold_0/dsl_dataset/all/raw").glob("*/imagesTr/*.nii.gz"))
    arrays = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in stacks]
    assert arrays and min(array.min() for array in arrays) < -100


def test_volumes_are_scored_in_their_own_geometry(run: Path) -> None:
    predictions = np.load(next((run / "fold_0/evaluate/A").glob("real-A/predictions.npz")))
    assert {predictions[name].shape for name in predictions.files} == {(HEIGHT, WIDTH, N_COARSE)}


def test_shared_pixels_have_the_spacing_of_the_plan_though_slices_were_shrunk() -> None:
    """The scale is undone before sharing; the spacing of the shrunk slices would make every organ twice as large."""
    info = ImageSetInfo(Intensity("source", (0.0,), (255.0,)), scale=0.5, spacing_mm=(1.0, 1.6), volumetric=True)
    kept = ImageSet(np.zeros((1, 1, 8, 8), np.uint8), (ImageEntry("A_syn_0"),), info)
    stated = what_images_are(kept, (), {"channel_names": {"0": "T2"}, "labels": {"background": 0, "organ": 1}}, 4.0)
    assert stated["spacing_mm"] == (4.0, 0.5, 0.8)
