"""Samples as files, with real intensities and geometry; cases and facts that are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
from support.nnunet_phantoms import (
    ARRAY_SPACING_MM,
    FILE_SPACING_MM,
    SMALL,
    WHOLE,
    Planned,
    mni_template,
    plan_with_nnunet,
    planned,
    read_image,
    settings_for,
    write_colour,
    write_ct,
    write_image,
    write_mr,
)

from common.errors import InputError
from common.files import write_json
from common.plan import plan_from_json
from common.seeds import derive_seed
from diffusion.crops import CropData
from diffusion.data import channels_as_labels
from nnunetv2_mod.cases import CaseFolder
from nnunetv2_mod.nnunet_folder import NnunetDataset
from nnunetv2_mod.output_spec import output_spec_from, write_dataset_json, write_sample
from nnunetv2_mod.source_spec import source_of
from training.image_batches import items_of_step


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Planned:
    return planned(write_ct, "Dataset001_Spheres", tmp_path_factory.mktemp("ct"), ("3d_fullres", "2d"))


@pytest.fixture(scope="module")
def mr(tmp_path_factory) -> Planned:
    return planned(write_mr, "Dataset002_Heads", tmp_path_factory.mktemp("mr"), ("3d_fullres",))


@pytest.fixture(scope="module")
def colour(tmp_path_factory) -> Planned:
    return planned(write_colour, "Dataset003_Discs", tmp_path_factory.mktemp("colour"), ("2d",))


@pytest.fixture
def copied(ct: Planned, tmp_path: Path) -> NnunetDataset:
    """The CT dataset, to be spoiled."""
    shutil.copytree(ct.dataset.preprocessed, tmp_path / "copied")
    return replace(ct.dataset, preprocessed=tmp_path / "copied")


def whole(planned: Planned, size: tuple[int, ...], n_labels: int, n_channels: int = 1) -> tuple[CropData, list[str]]:
    settings = settings_for(size, n_channels, n_labels)
    data = CropData(planned.dataset, planned.volumes, settings, 0, seed=1)
    order = np.random.default_rng(derive_seed(1, "order", 0)).permutation(len(data.split.train))
    return data, [data.split.train[i] for i in order]


# Round trip (defect 17)


def test_the_phantom_is_transposed_by_nnunet(ct: Planned) -> None:
    """Otherwise the tests below would show nothing of it."""
    assert ct.volumes.transpose_forward == (2, 0, 1) and ct.volumes.transpose_backward == (1, 2, 0)
    assert ct.volumes.spacing_mm == ARRAY_SPACING_MM


def test_a_case_comes_back_as_the_file_it_was(ct: Planned, tmp_path: Path) -> None:
    """Spec defect 17: samples had neither geometry nor intensities."""
    data, names = whole(ct, WHOLE, n_labels=2)
    shown = data.at(0, 1)[0].numpy()
    spec = output_spec_from(json.loads(json.dumps(data.output_spec)))
    labels = channels_as_labels(shown[None, 1:])[0]
    image_file, label_file = write_sample(tmp_path, "syn", shown[:1], spec, labels)
    assert [path.relative_to(tmp_path).as_posix() for path in (image_file, label_file)] == [
        "imagesTr/syn_0000.nii.gz",
        "labelsTr/syn.nii.gz",
    ]
    written, original = read_image(image_file), read_image(ct.dataset.raw / f"imagesTr/{names[0]}_0000.nii.gz")
    assert written.GetSpacing() == original.GetSpacing() == FILE_SPACING_MM[::-1]
    assert written.GetPixelID() == original.GetPixelID() == SimpleITK.sitkInt16
    (channel,), restored = spec.channels, spec.channels[0].restored
    assert restored.space == "source"
    ends = [end * restored.scale + restored.offset for end in (channel.low, channel.high)]
    expected = np.clip(SimpleITK.GetArrayFromImage(original).astype(float), *ends)
    assert np.abs(SimpleITK.GetArrayFromImage(written) - expected).max() <= 1
    assert np.ptp(expected) > 400
    truth = SimpleITK.GetArrayFromImage(read_image(ct.dataset.raw / f"labelsTr/{names[0]}.nii.gz"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(read_image(label_file)), truth)
    assert read_image(label_file).GetSpacing() == written.GetSpacing()


def test_nnunet_reads_what_is_written(ct: Planned, tmp_path: Path, monkeypatch) -> None:
    """With its own reader and its own check of a dataset."""
    from nnunetv2.experiment_planning import verify_dataset_integrity as own
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunetv2_mod.environment import threads_for_pools

    pools = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(own, "multiprocessing", pools)  # a spawned process would import torch again
    data, _ = whole(ct, SMALL, n_labels=2)
    spec = output_spec_from(data.output_spec)
    for number, crop in enumerate(data.at(0, 2).numpy()):
        write_sample(tmp_path, f"s{number}", crop[:1], spec, channels_as_labels(crop[None, 1:])[0])
    write_dataset_json(tmp_path, spec, n_axes=3, n_cases=2)
    with threads_for_pools():
        own.verify_dataset_integrity(str(tmp_path), num_processes=1)
    array, properties = SimpleITKIO().read_images([str(tmp_path / "imagesTr/s0_0000.nii.gz")])
    assert tuple(properties["spacing"]) == FILE_SPACING_MM
    assert array.shape == (1, SMALL[1], SMALL[2], SMALL[0])
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []  # no temporary is left


def test_slices_of_a_volume_keep_their_place_in_the_file(ct: Planned, tmp_path: Path) -> None:
    settings = settings_for((26, 22), n_labels=0)
    data = CropData(ct.dataset, ct.slices, settings, 0, seed=1)
    crop = data.at(0, 1).numpy()[0]
    assert crop.shape == (1, 26, 22)
    (path,) = write_sample(tmp_path, "slice", crop, output_spec_from(data.output_spec))
    image = read_image(path)
    assert image.GetSize() == (1, 22, 26) and image.GetSpacing() == pytest.approx(FILE_SPACING_MM[::-1])


def test_colour_pictures_come_back(colour: Planned, tmp_path: Path) -> None:
    data, names = whole(colour, (48, 40), n_labels=1, n_channels=3)
    shown = data.at(0, 1)[0].numpy()
    spec = output_spec_from(data.output_spec)
    image_file, label_file = write_sample(tmp_path, "syn", shown[:3], spec, channels_as_labels(shown[None, 3:])[0])
    assert (image_file.name, label_file.name) == ("syn_0000.png", "syn.png")
    image, original = read_image(image_file), read_image(colour.dataset.raw / f"imagesTr/{names[0]}_0000.png")
    written, expected = (SimpleITK.GetArrayFromImage(one).astype(float) for one in (image, original))
    assert image.GetPixelID() == original.GetPixelID() == SimpleITK.sitkVectorUInt8
    assert spec.channels[0].restored.space == "source"
    scaled = [np.corrcoef(written[..., c].ravel(), expected[..., c].ravel())[0, 1] for c in range(3)]
    assert min(scaled) > 0.999  # z-scores come back with the median image's mean and deviation
    assert np.abs(written - expected).mean() < 8
    truth = SimpleITK.GetArrayFromImage(read_image(colour.dataset.raw / f"labelsTr/{names[0]}.png"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(read_image(label_file)), truth)


def test_outside_the_mask_is_background_again(mr: Planned, tmp_path: Path) -> None:
    """nnU-Net leaves a 0 there, which among z-scores is the mean of the head."""
    assert mr.volumes.use_mask_for_norm == (True, True)
    data, names = whole(mr, (8, 20, 26), n_labels=0, n_channels=2)  # larger than the head: padded too
    spec = output_spec_from(data.output_spec)
    files = write_sample(tmp_path, "syn", data.at(0, 1)[0].numpy(), spec)
    assert [path.name for path in files] == ["syn_0000.nii.gz", "syn_0001.nii.gz"]
    for channel, (path, level) in enumerate(zip(files, (300, 900))):
        values = SimpleITK.GetArrayFromImage(read_image(path))
        original = SimpleITK.GetArrayFromImage(read_image(mr.dataset.raw / f"imagesTr/{names[0]}_{channel:04d}.nii.gz"))
        assert values[0, 0, 0] == pytest.approx(0, abs=level / 50)
        assert (values < level / 50).mean() > 0.3
        assert np.median(values[values > level / 2]) == pytest.approx(np.median(original[original > 0]), rel=0.2)


@pytest.mark.parametrize("scheme", ["CT", "ZScore", "No", "RescaleTo01", "RGBTo01"])
def test_what_nnunet_normalised_is_restored(tmp_path: Path, scheme: str) -> None:
    """With its own classes, on one image: what they did is undone, up to the clipping of CT."""
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as own

    image = np.random.default_rng(0).integers(1, 200, (8, 9, 10)).astype(np.uint8)
    image[:2] = 0  # cut off by nnU-Net before it normalises
    write_image(tmp_path / "imagesTr/a_0000.nrrd", image)
    intensity = {"mean": 90.0, "std": 40.0, "percentile_00_5": 5.0, "percentile_99_5": 190.0}
    described = {"channel_names": {"0": "x"}, "labels": {"background": 0}, "file_ending": ".nrrd"}
    dataset = NnunetDataset("Dataset005_One", tmp_path, tmp_path, {}, described)
    scheme = f"{scheme}Normalization"
    plan = SimpleNamespace(normalization_schemes=(scheme,), use_mask_for_norm=(False,), intensity=(intensity,))
    source = source_of(dataset, plan, ["a"])
    (restored,) = source.restored
    assert (source.dtype, source.file_axes, restored.space) == ("uint8", 3, "source")
    normalised = getattr(own, scheme)(False, intensity).run(image[2:].astype(np.float32))
    low, high = (restored.lower, restored.upper) if scheme == "CTNormalization" else (0, 255)
    assert normalised * restored.scale + restored.offset == pytest.approx(image[2:].clip(low, high), abs=1e-3)


def test_three_grey_files_are_no_colour_picture(colour: Planned, tmp_path: Path) -> None:
    """Told apart by the raw files; without them by the channels' names."""
    spec = CropData(colour.dataset, colour.slices, settings_for((8, 8), 3), 0, seed=0).output_spec
    without_raw = CropData(
        replace(colour.dataset, raw=None), colour.slices, settings_for((8, 8), 3), 0, seed=0
    ).output_spec
    assert spec["rgb"] and without_raw["rgb"] and without_raw["dtype"] == "uint8"
    grey = np.linspace(-1, 1, 3 * 64).reshape(3, 8, 8)
    (one,) = write_sample(tmp_path, "unknown", grey, output_spec_from(without_raw))
    written = SimpleITK.GetArrayFromImage(read_image(one))
    assert written.min() == 0 and written.max() == 255  # stretched, as the units are unknown
    three = write_sample(tmp_path, "grey", grey, output_spec_from({**spec, "rgb": False}))
    assert [path.name for path in three] == ["grey_0000.png", "grey_0001.png", "grey_0002.png"]
    assert {read_image(path).GetPixelID() for path in three} == {SimpleITK.sitkUInt8}


def test_without_raw_images_z_scores_are_said_to_be_normalised(mr: Planned, caplog) -> None:
    settings = settings_for(SMALL, n_channels=2)
    data = CropData(replace(mr.dataset, raw=None), mr.volumes, settings, 0, seed=1)
    spec = output_spec_from(data.output_spec)
    assert [channel.restored.space for channel in spec.channels] == ["normalised", "normalised"]
    assert spec.dtype == "float32" and "ZScoreNormalization" in caplog.text


def test_the_mni_brain_comes_back(tmp_path: Path) -> None:
    """A real volume in z-scores: cut, windowed and written, it is what it was up to the clipping."""
    volume = mni_template("t1")[::3, ::3, ::3].astype(np.float32)
    raw = tmp_path / "raw/Dataset004_Brain"
    for number in range(5):
        write_image(raw / f"imagesTr/b{number}_0000.nii.gz", volume * (1 + number / 100), (3.0, 3.0, 3.0))
        write_image(raw / f"labelsTr/b{number}.nii.gz", (volume > 200).astype(np.uint8), (3.0, 3.0, 3.0))
    described = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "bright": 1}}
    write_json(raw / "dataset.json", {**described, "numTraining": 5, "file_ending": ".nii.gz"})
    dataset = plan_with_nnunet(raw, tmp_path / "preprocessed", ("3d_fullres",))
    plan = plan_from_json(dataset.plans, "3d_fullres")
    size = CaseFolder(dataset.preprocessed / plan.data_identifier, 1).read("b2")[1].shape
    data = CropData(dataset, plan, settings_for(size, n_labels=1), "all", seed=0)
    (case,) = np.flatnonzero(np.array(data.split.train)[items_of_step(5, 0, 5, 0)] == "b2")
    shown = data.at(0, 5)[case].numpy()
    (path,) = write_sample(tmp_path, "syn", shown[:1], output_spec_from(data.output_spec))
    written = SimpleITK.GetArrayFromImage(read_image(path))
    inside = np.nonzero(volume)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in inside)
    expected = volume[box] * 1.02  # the median image
    assert written.shape == expected.shape and read_image(path).GetSpacing() == (3.0, 3.0, 3.0)
    assert np.quantile(np.abs(written - expected), 0.999) < 1 and expected.max() > 240


# What is refused, before any training


def crop_data(dataset: NnunetDataset, planned: Planned, **settings) -> CropData:
    return CropData(dataset, planned.volumes, settings_for(SMALL, **settings), "all", seed=0)


def test_spoiled_datasets_are_refused_with_the_file_and_a_way_out(copied: NnunetDataset, ct: Planned) -> None:
    import blosc2

    folder = copied.preprocessed / ct.volumes.data_identifier
    image, labels = folder / "case_3.b2nd", folder / "case_3_seg.b2nd"
    array = blosc2.open(str(image))[:]
    kept = labels.read_bytes()

    def refused(problem: str, where: Path, **settings) -> None:
        with pytest.raises(InputError, match=problem) as caught:
            crop_data(copied, ct, **settings)
        assert caught.value.where == str(where) and len(caught.value.fix) > 10

    two = copied.dataset_json | {"channel_names": {"0": "CT", "1": "PET"}}
    with pytest.raises(InputError, match="1 channels of the cases for a model of 2"):
        crop_data(replace(copied, dataset_json=two), ct, n_channels=2)
    refused("labels", folder / "case_0.b2nd", n_labels=1)
    labels.unlink()
    refused("case_3 has no label map", labels)
    labels.write_bytes(kept[:50])
    refused("not readable", labels)
    labels.write_bytes(kept)
    image.unlink()
    blosc2.asarray(array[:, 1:], urlpath=str(image))
    refused("label map of shape", labels)
    array[0, 1, 1, 1] = np.nan
    image.unlink()
    blosc2.asarray(array, urlpath=str(image))
    refused("1 values that are not finite", image)
    for file in folder.iterdir():
        file.unlink()
    refused("no preprocessed case", folder)
    folder.rmdir()
    refused("no such folder", folder)


@pytest.mark.parametrize(
    "change", [{"channel_names": {}}, {"channel_names": None}, {"labels": {"organ": "1"}}, {"file_ending": "nii"}]
)
def test_a_dataset_json_that_nnunet_would_not_take_is_refused(ct: Planned, change: dict) -> None:
    dataset = replace(ct.dataset, dataset_json=ct.dataset.dataset_json | change)
    with pytest.raises(InputError, match=next(iter(change))):
        crop_data(dataset, ct)


def test_pickles_are_never_opened(copied: NnunetDataset, ct: Planned) -> None:
    """Properties of a case are not needed, and arrays of objects are refused."""
    folder = copied.preprocessed / ct.volumes.data_identifier
    for file in folder.glob("*.pkl"):
        file.write_bytes(b"\x80\x04\x95no pickle")
    crop_data(copied, ct)
    for file in folder.iterdir():
        file.unlink()
    objects = np.empty((1, 2, 2, 2), object)
    np.savez(folder / "case_0.npz", data=objects, seg=np.zeros((1, 2, 2, 2)))
    np.savez(folder / "case_1.npz", data=objects, seg=np.zeros((1, 2, 2, 2)))
    with pytest.raises(InputError, match="not readable"):
        crop_data(copied, ct)


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": [0.0, 1.0, 1.0]},
        {"transpose_backward": [0, 0, 1]},
        {"file_ending": "/../../x.nii.gz"},
        {"dtype": "object"},
        {"channels": []},
        {"labels": {"organ": 300}},
        {"something": 1},
    ],
)
def test_facts_no_training_writes_are_refused(ct: Planned, change: dict) -> None:
    spec = dict(CropData(ct.dataset, ct.volumes, settings_for(SMALL), 0, seed=0).output_spec)
    assert output_spec_from(spec)
    with pytest.raises(InputError):
        output_spec_from(spec | change)


def test_some_channels_of_the_images_can_be_trained_on_alone(mr: Planned) -> None:
    """The second channel by itself has the values, the name and the units that it has beside the first."""
    both = CropData(mr.dataset, mr.volumes, settings_for(SMALL, n_channels=2), 0, seed=1)
    second = CropData(mr.dataset, mr.volumes, settings_for(SMALL, n_channels=1), 0, seed=1, channels=[1])
    assert np.allclose(both.at(0, 4)[:, 1:], second.at(0, 4), atol=1e-4)
    assert (
        second.output_spec["channels"] == both.output_spec["channels"][1:]
        and second.output_spec["channels"][0]["name"] == "T2"
    )
    with pytest.raises(InputError, match="plan the dataset again"):
        CropData(mr.dataset, mr.volumes, settings_for(SMALL, n_channels=2), 0, seed=1, channels=[1])
