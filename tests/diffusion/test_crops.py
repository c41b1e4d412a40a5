"""Crops of nnU-Net's preprocessed cases: batches that follow from the step, labels, bounds, and folds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.nnunet_phantoms import (
    N_CASES,
    SMALL,
    WHOLE,
    Planned,
    planned,
    settings_for,
    write_ct,
)

from common.errors import InputError
from common.files import write_json
from diffusion.crops import CropData
from diffusion.data import channels_as_labels
from nnunetv2_mod.case_splits import split_cases
from nnunetv2_mod.case_survey import window_of
from nnunetv2_mod.nnunet_folder import NnunetDataset


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Planned:
    return planned(write_ct, "Dataset001_Spheres", tmp_path_factory.mktemp("ct"), ("3d_fullres", "2d"))


@pytest.fixture
def copied(ct: Planned, tmp_path: Path) -> NnunetDataset:
    """The CT dataset, to be spoiled."""
    shutil.copytree(ct.dataset.preprocessed, tmp_path / "copied")
    return replace(ct.dataset, preprocessed=tmp_path / "copied")


# Batches


def test_a_batch_depends_on_its_step_alone(ct: Planned) -> None:
    settings = settings_for(SMALL, n_labels=2, mirror=True)
    first, second = (CropData(ct.dataset, ct.volumes, settings, 0, seed=3) for _ in range(2))
    second.at(0, 6), second.fixed()
    assert np.array_equal(first.at(5, 6), second.at(5, 6))
    assert not np.array_equal(first.at(5, 6), first.at(6, 6))
    assert not np.array_equal(first.at(5, 6), CropData(ct.dataset, ct.volumes, settings, 0, seed=4).at(5, 6))
    assert np.array_equal(first.fixed(), second.fixed())


def test_each_case_is_shown_once_before_any_again(ct: Planned) -> None:
    """Told apart by their whole image."""
    data = CropData(ct.dataset, ct.volumes, settings_for(WHOLE), 0, seed=0)
    n_cases = len(data.split.train)
    for epoch in range(2):
        crops = [data.at(step, 1)[0].numpy() for step in range(epoch * n_cases, (epoch + 1) * n_cases)]
        assert len({crop.tobytes() for crop in crops}) == n_cases


def test_the_last_third_is_centred_on_labels(ct: Planned) -> None:
    """Crops of one voxel: what is forced is a label, each of them in turn."""
    data = CropData(ct.dataset, ct.volumes, settings_for((1, 1, 1), n_labels=2), 0, seed=0)
    batches = np.concatenate([channels_as_labels(data.at(step, 6).numpy()[:, 1:]) for step in range(20)])
    labels = batches.reshape(20, 6)
    assert (labels[:, 4:] > 0).all() and (labels[:, :4] == 0).any()
    assert 0.3 < (labels[:, 4:] == 2).mean() < 0.7  # the label is drawn first, however small it is


def test_crops_on_labels_hold_them_and_stay_within_the_case(ct: Planned) -> None:
    for size, plan in ((SMALL, ct.volumes), ((12, 10), ct.slices)):
        data = CropData(ct.dataset, plan, settings_for(size, n_labels=2), 1, seed=0)
        for step in range(5):
            batch = data.at(step, 3)
            assert batch.shape == (3, 3, *size)
            assert (batch[2, 1:] > 0).any()


def test_values_are_bounded_whatever_the_case_holds(copied: NnunetDataset, ct: Planned) -> None:
    """Spec defect 3: z-scores went in unbounded where [0, 1] was assumed."""
    import blosc2

    folder = copied.preprocessed / ct.volumes.data_identifier
    image = blosc2.open(str(folder / "case_0.b2nd"))[:]
    image[0, 3, 3, 3], image[0, 4, 4, 4] = 1e6, -1e6
    (folder / "case_0.b2nd").unlink()
    blosc2.asarray(image, urlpath=str(folder / "case_0.b2nd"))
    data = CropData(copied, ct.volumes, settings_for(WHOLE, n_labels=2), "all", seed=0)
    batch = data.at(0, N_CASES)
    assert float(batch.abs().max()) == 1 and float(batch[:, 0].std()) > 0.1


def test_a_small_case_is_padded_with_background(ct: Planned) -> None:
    size = (16, 30, 24)
    data = CropData(ct.dataset, ct.volumes, settings_for(size, n_labels=2), 0, seed=0)
    crop = data.at(0, 1)[0].numpy()
    margins = np.ones(size, bool)
    margins[2:-2, 2:-2, 1:-1] = False
    assert (crop[0][margins] == crop[0].min()).all() and (crop[1:, margins] == -1).all()
    inner = CropData(ct.dataset, ct.volumes, settings_for(WHOLE, n_labels=2), 0, seed=0).at(0, 1)[0].numpy()
    assert np.array_equal(crop[:, 2:-2, 2:-2, 1:-1], inner)


def test_images_are_mirrored_along_the_last_axis_only_and_with_their_labels(ct: Planned) -> None:
    plain, mirrored = (
        CropData(ct.dataset, ct.volumes, settings_for(WHOLE, n_labels=2, mirror=mirror), 0, seed=0).at(0, 5)
        for mirror in (False, True)
    )
    flipped = [not np.array_equal(a, b) for a, b in zip(plain, mirrored)]
    assert all(np.array_equal(a.flip(-1), b) for a, b, turned in zip(plain, mirrored, flipped) if turned)
    assert True in flipped and False in flipped


def test_validation_looks_at_held_out_cases(ct: Planned) -> None:
    data = CropData(ct.dataset, ct.volumes, settings_for(WHOLE), 0, seed=0)
    assert not set(data.split.train) & set(data.split.validate)
    assert data.has_heldout and data.n_items == len(data.split.train) == 5
    assert not CropData(ct.dataset, ct.volumes, settings_for(WHOLE), "all", seed=0).has_heldout
    shown = {crop.numpy().tobytes() for crop in data.at(0, len(data.split.train))}
    fixed = data.fixed()
    assert len(fixed) == len(data.split.validate)  # a whole case has one crop only
    assert not shown & {crop.numpy().tobytes() for crop in fixed}
    small = CropData(ct.dataset, ct.volumes, settings_for((4, 8, 8), n_labels=2), 0, seed=0).fixed()
    assert len(small) == 4 and (small[:, 1:] > 0).any()
    assert len(CropData(ct.dataset, ct.slices, settings_for((8, 8)), 0, seed=0).fixed()) <= 16


# Labels are optional, constant images are no error (defect 16)


def write_npz(folder: Path, images: dict[str, np.ndarray], labels: np.ndarray | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        arrays = {"data": image} if labels is None else {"data": image, "seg": labels}
        np.savez_compressed(folder / f"{name}.npz", **arrays)


@pytest.mark.parametrize("labels", [None, np.zeros((1, *WHOLE), np.int8)])
def test_cases_without_labels_train_and_constant_ones_do_not_divide_by_zero(ct, copied, labels) -> None:
    """Spec defect 16; in nnU-Net's earlier format, too."""
    folder = copied.preprocessed / ct.volumes.data_identifier
    shutil.rmtree(folder)
    rng = np.random.default_rng(0)
    images = {f"case_{i}": rng.normal(size=(1, *WHOLE)).astype(np.float32) for i in range(4)}
    write_npz(folder, images | {"case_4": np.full((1, *WHOLE), 2, np.float32)}, labels)
    data = CropData(copied, ct.volumes, settings_for(SMALL), 0, seed=0)
    for step in range(5):
        batch = data.at(step, 3)
        assert np.isfinite(batch.numpy()).all() and float(batch.abs().max()) <= 1
    assert len(data.fixed()) > 0
    if labels is None:
        with pytest.raises(InputError, match="no label maps"):
            CropData(copied, ct.volumes, settings_for(SMALL, n_labels=2), 0, seed=0)


def test_a_channel_that_is_the_same_everywhere_has_a_window(caplog) -> None:
    values = np.stack([np.full(1000, 3.0), np.linspace(-1, 1, 1000), np.r_[np.zeros(9999), 5.0][-1000:]])
    constant, plain, sparse = window_of(values)
    assert constant == (3.0, 4.0) and "same everywhere" in caplog.text
    assert plain == pytest.approx((-1, 1), abs=0.01) and sparse[1] > 1


# Splits (defect 9)


def test_folds_are_nnunets_own(ct: Planned) -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    names = [f"case_{number}" for number in range(N_CASES)]
    expected = generate_crossval_split(sorted(names), seed=12345, n_splits=5)
    shuffled = ["case_5", "case_0", "case_6", "case_2", "case_1", "case_4", "case_3"]
    splits = [split_cases(ct.dataset, shuffled, fold) for fold in range(5)]
    assert [list(split.train) for split in splits] == [split["train"] for split in expected]
    assert [list(split.validate) for split in splits] == [split["val"] for split in expected]
    assert not (ct.dataset.preprocessed / "splits_final.json").exists()  # nnU-Net would silently use ours


def test_a_stored_split_is_used_as_it_is(copied: NnunetDataset) -> None:
    names = [f"case_{number}" for number in range(N_CASES)]
    stored = copied.preprocessed / "splits_final.json"
    write_json(stored, [{"train": names[2:5], "val": names[:2]}])
    before = stored.read_bytes()
    split = split_cases(copied, names, "0")
    assert (split.train, split.validate) == (tuple(names[2:5]), tuple(names[:2]))
    with pytest.raises(InputError, match="no fold 1"):
        split_cases(copied, names, 1)
    write_json(stored, [{"train": [*names[2:5], "gone"], "val": names[:2]}])
    with pytest.raises(InputError, match="gone"):
        split_cases(copied, names, 0)
    write_json(stored, [{"train": names, "val": names[:2]}])
    with pytest.raises(InputError, match="both parts"):
        split_cases(copied, names, 0)
    stored.write_bytes(before[:10])
    with pytest.raises(InputError, match="not readable JSON"):
        split_cases(copied, names, 0)


def test_cases_of_a_patient_stay_together(copied: NnunetDataset) -> None:
    names = [f"case_{number:02d}" for number in range(20)]
    patients = {name: f"p{number // 3}" for number, name in enumerate(names)}
    write_json(copied.preprocessed / "patients.json", patients)
    held_out = []
    for fold in range(5):
        split = split_cases(copied, names, fold)
        assert not {patients[name] for name in split.train} & {patients[name] for name in split.validate}
        held_out += split.validate
    assert sorted(held_out) == names


@pytest.mark.parametrize("fold", [5, -1, "5", "some"])
def test_a_fold_that_does_not_exist_is_refused(ct: Planned, fold: int | str) -> None:
    """Spec defect 9: fold 5 was admitted."""
    with pytest.raises(InputError, match="no fold"):
        split_cases(ct.dataset, [f"case_{number}" for number in range(N_CASES)], fold)


def test_all_trains_on_all_and_too_few_cases_have_no_folds(ct: Planned) -> None:
    names = [f"case_{number}" for number in range(3)]
    split = split_cases(ct.dataset, names, "all")
    assert split.train == tuple(names) and set(split.validate) <= set(names)
    with pytest.raises(InputError, match="5 folds"):
        split_cases(ct.dataset, names, 0)
