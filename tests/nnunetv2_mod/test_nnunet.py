"""nnU-Net as a library: schedules, exact resume, whole loading, private roots, one normalisation."""

from __future__ import annotations

import dataclasses
import json
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from skimage import io
from support.blobs import SPLITS, write_blobs

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from nnunetv2_mod import (
    PlanSettings,
    TrainSettings,
    adopt_plan,
    learning_rate,
    load_model,
    negotiate_plan,
    plan_dataset,
    predict_arrays,
    site_statistics,
    train,
)

SHORT = TrainSettings(n_epochs=4, n_iterations=3, n_val_iterations=1)


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("planned")
    plan_dataset(write_blobs(root / "raw"), root, PlanSettings(base_features=4), SPLITS)
    return root


@pytest.fixture(scope="module")
def undisturbed(planned: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(planned, out, SHORT, seed=5)
    return out


@pytest.mark.parametrize("n_epochs", [2, 5, 9, 10, 100, 1000])
def test_the_warm_up_starts_above_zero_and_exists_below_ten_epochs(n_epochs: int) -> None:
    """D15: the original's first epoch ran at a rate of exactly 0, and 9 epochs had no warm-up at all."""
    settings = TrainSettings(n_epochs=n_epochs, schedule="poly_warmup")
    rates = [learning_rate(settings, epoch) for epoch in range(n_epochs)]
    peak = rates.index(max(rates))
    assert rates[0] > 0 and peak == max(1, n_epochs // 10) and rates[peak] == pytest.approx(0.01)
    assert all(a < b for a, b in zip(rates[:peak], rates[1:peak])) and rates[-1] > 0
    assert all(a > b for a, b in zip(rates[peak:], rates[peak + 1 :]))


def test_poly_is_nnunets_own_schedule() -> None:
    settings = TrainSettings(n_epochs=1000)
    assert learning_rate(settings, 0) == 0.01
    assert learning_rate(settings, 500) == pytest.approx(0.01 * 0.5**0.9)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="poly_warmup"):
        TrainSettings(schedule="cosine")


def test_a_training_cut_after_two_epochs_resumes_to_the_same_bits(planned: Path, undisturbed: Path, tmp_path) -> None:
    """D18, D43: the original could not resume and seeded nothing."""

    class PowerCut(Exception):
        pass

    def cut(done: float, total: float, unit: str) -> None:
        if done == 2:
            raise PowerCut

    with pytest.raises(PowerCut):
        train(planned, tmp_path, SHORT, seed=5, progress=cut)
    train(planned, tmp_path, SHORT, seed=5)
    for name in ("model/model.safetensors", "curves.jsonl"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.slow
def test_a_training_with_augmentation_processes_ends(planned: Path, tmp_path: Path) -> None:
    """Forked from a process with threads they can hang; spawned they import torch again, which takes its time."""
    train(planned, tmp_path, dataclasses.replace(SHORT, n_epochs=1, augmentation_processes=1), seed=5)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_another_seed_gives_another_network(planned: Path, undisturbed: Path, tmp_path: Path) -> None:
    """D43: the original computed seeds for its networks and did not use them."""
    train(planned, tmp_path, TrainSettings(n_epochs=1, n_iterations=1, n_val_iterations=1), seed=6)
    ours, _ = load_tensors(tmp_path / "model" / "model.safetensors")
    theirs, _ = load_tensors(undisturbed / "model" / "model.safetensors")
    assert any(not np.array_equal(ours[name], theirs[name]) for name in ours)


def test_fine_tuning_starts_from_every_layer_heads_included(planned: Path, undisturbed: Path, tmp_path: Path) -> None:
    still = TrainSettings(n_epochs=1, n_iterations=1, n_val_iterations=1, initial_lr=1e-12)
    train(planned, tmp_path, still, seed=9, initial_model=undisturbed / "model")
    before, _ = load_tensors(undisturbed / "model" / "model.safetensors")
    after, _ = load_tensors(tmp_path / "model" / "model.safetensors")
    assert any("seg_layers" in name for name in before)
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-7, err_msg=name)


def test_weights_of_another_plan_are_refused_by_name(planned: Path, undisturbed: Path, tmp_path: Path) -> None:
    tensors, metadata = load_tensors(undisturbed / "model" / "model.safetensors")
    name = sorted(tensors)[0]
    save_tensors(tmp_path / "model.safetensors", {**tensors, name: tensors[name][..., :1]}, metadata)
    with pytest.raises(InputError, match="the plan needs"):
        train(planned, tmp_path / "out", SHORT, seed=1, initial_model=tmp_path)


def test_two_experiments_do_not_share_nnunets_folders(planned: Path, undisturbed: Path) -> None:
    """D20: results were keyed by dataset id alone, in folders that every experiment wrote."""
    assert not {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"} & set(os.environ)
    assert (undisturbed / "nnunet").is_dir() and not (planned / "nnunet").exists()


def test_labelling_normalises_each_channel_as_training_does(tmp_path: Path) -> None:
    """D3: the original z-scored all channels together when labelling; training had z-scored each."""
    from nnunetv2_mod.cases import read_preprocessed
    from nnunetv2_mod.predict import _preprocess

    dataset = write_blobs(tmp_path / "raw", n_channels=3)
    plan_dataset(dataset, tmp_path, PlanSettings(base_features=4), SPLITS)
    train(tmp_path, tmp_path, TrainSettings(n_epochs=1, n_iterations=1, n_val_iterations=1), seed=0)
    model = load_model(tmp_path / "model")
    stored = io.imread(dataset / "imagesTr" / "case0_0000.png")
    image = np.moveaxis(stored, -1, 0)[:, None].astype(np.float32)
    prepared, _ = _preprocess(model, image, (999.0, 1.0, 1.0))
    trained_on = read_preprocessed(tmp_path, "case0").array
    np.testing.assert_allclose(prepared, trained_on, atol=1e-5)
    np.testing.assert_allclose(prepared.mean(axis=(1, 2, 3)), 0, atol=1e-4)


def test_batched_labels_equal_single_ones_and_keep_height_and_width(undisturbed: Path) -> None:
    model = load_model(undisturbed / "model")
    rng = np.random.default_rng(3)
    images = [rng.normal(100, 30, (1, 1, *shape)).astype(np.float32) for shape in ((32, 48), (30, 41))]
    spacings = [(999.0, 1.0, 1.0)] * 2
    together = predict_arrays(model, images, spacings)
    alone = [predict_arrays(model, [image], spacings[:1])[0] for image in images]
    assert [labels.shape for labels in together] == [(1, 32, 48), (1, 30, 41)]
    for a, b in zip(together, alone):
        assert np.mean(a != b) < 0.001  # another batch size may round one logit differently


def test_images_larger_than_the_patch_are_labelled_by_sliding_window(undisturbed: Path) -> None:
    model = load_model(undisturbed / "model")
    image = np.random.default_rng(3).normal(100, 30, (1, 1, 90, 60)).astype(np.float32)
    assert predict_arrays(model, [image], [(999.0, 1.0, 1.0)])[0].shape == (1, 90, 60)


def test_an_adopted_plan_preprocesses_by_the_other_datasets_normalisation(planned: Path, tmp_path: Path) -> None:
    """D12: fine-tuning took the pooled plan but cases preprocessed by the site's own."""
    plans = json.loads((planned / "plans.json").read_text())
    plans["configurations"]["2d"]["normalization_schemes"] = ["NoNormalization"]
    dataset = write_blobs(tmp_path / "raw")
    adopt_plan(dataset, plans, tmp_path, SPLITS)
    from nnunetv2_mod.cases import read_preprocessed

    case = read_preprocessed(tmp_path, "case0")
    assert case.array.mean() > 10  # not z-scored: the adopted plan's scheme was used
    assert json.loads((tmp_path / "plans.json").read_text())["dataset_name"] == "Dataset101_blobs"


def test_an_unlucky_dataset_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DatasetXXX_Name"):
        plan_dataset(tmp_path / "lungs", tmp_path, PlanSettings(), SPLITS)


def test_planning_starts_no_process(tmp_path: Path, monkeypatch) -> None:
    """A forked pool can hang for ever in a process that has threads, as every Ray worker has; negotiating did."""

    def refuse(process: BaseProcess) -> None:
        raise AssertionError(f"{process} was started")

    monkeypatch.setattr(BaseProcess, "start", refuse)
    dataset = write_blobs(tmp_path / "raw")
    plan_dataset(dataset, tmp_path / "A", PlanSettings(base_features=4), SPLITS)
    statistics = site_statistics(tmp_path / "A")
    common = negotiate_plan({"A": statistics, "B": statistics}, tmp_path / "hub", "Dataset102_hub", PlanSettings())
    adopt_plan(dataset, json.loads(common.read_text()), tmp_path / "B", SPLITS)
    assert (tmp_path / "B" / "plans.json").is_file()
