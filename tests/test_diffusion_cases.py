"""nnU-Net's preprocessed cases as crops, and samples as files: geometry, intensities, splits, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
from conftest import SHARED_DATA

from common.errors import InputError
from common.files import read_json, write_json
from common.seeds import derive_seed
from diffusion.case_splits import split_cases
from diffusion.case_survey import window_of
from diffusion.cases import CaseFolder
from diffusion.crops import CropData
from diffusion.data import channels_as_labels
from diffusion.facts import facts_from
from diffusion.nnunet_folder import NnunetDataset
from diffusion.settings import DenoiserSettings, DiffusionConfig, DiffusionSettings
from diffusion.source_facts import source_of
from diffusion.spatial_plan import SpatialPlan, spatial_plan_from_json
from diffusion.write_images import write_dataset_json, write_sample

N_CASES = 7
FILE_SHAPE, FILE_SPACING_MM = (26, 22, 12), (1.5, 1.0, 4.0)  # z, y, x: the coarse axis is the file's last
ARRAY_SPACING_MM = (4.0, 1.5, 1.0)  # x, z, y


@dataclass(frozen=True)
class Planned:
    dataset: NnunetDataset
    volumes: SpatialPlan
    slices: SpatialPlan


def write_image(path: Path, array: np.ndarray, spacing_mm: tuple[float, ...] = FILE_SPACING_MM) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    SimpleITK.WriteImage(image, str(path))


def read_image(path: Path) -> SimpleITK.Image:
    return SimpleITK.ReadImage(str(path))


def in_mm(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    grid = np.meshgrid(*[(np.arange(n) - n / 2) * mm for n, mm in zip(shape, spacing_mm)], indexing="ij")
    return np.stack(grid)


def write_ct(raw: Path) -> None:
    """Spheres of 10 mm and of 5 mm in it, in soft tissue: labels 1 and 2, Hounsfield units of noise."""
    rng = np.random.default_rng(0)
    for number in range(N_CASES):
        place = in_mm(FILE_SHAPE, FILE_SPACING_MM) - rng.uniform(-4, 4, (3, 1, 1, 1))
        distance = np.sqrt((place**2).sum(0))
        labels = (distance < 10).astype(np.uint8) + (distance < 5)
        ct = np.array([-100.0, 60.0, 400.0])[labels] + rng.normal(0, 20, FILE_SHAPE)
        ct[0, 0] = -1000 - number  # so that nothing is cropped, and air is beyond the clipping
        write_image(raw / "imagesTr" / f"case_{number}_0000.nii.gz", ct.round().astype(np.int16))
        write_image(raw / "labelsTr" / f"case_{number}.nii.gz", labels)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}
    write_json(raw / "dataset.json", {**described, "numTraining": N_CASES, "file_ending": ".nii.gz"})


def write_mr(raw: Path) -> None:
    """Two channels in units of their own for each case, zero outside a small head: normalised inside its mask."""
    rng = np.random.default_rng(1)
    for number in range(N_CASES):
        distance = np.sqrt((in_mm(FILE_SHAPE, FILE_SPACING_MM) ** 2).sum(0))
        head = distance < 9 + rng.uniform(0, 1)
        labels = (distance < 4).astype(np.uint8)
        for channel, level in enumerate((300.0, 900.0)):
            mr = (level + level / 3 * labels + rng.normal(0, 20, FILE_SHAPE)) * rng.uniform(0.9, 1.1)
            write_image(raw / "imagesTr" / f"mr{number}_{channel:04d}.nii.gz", (mr * head).astype(np.float32))
        write_image(raw / "labelsTr" / f"mr{number}.nii.gz", labels)
    described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "core": 1}}
    write_json(raw / "dataset.json", {**described, "numTraining": N_CASES, "file_ending": ".nii.gz"})


def write_colour(raw: Path) -> None:
    """RGB pictures of a disc."""
    rng = np.random.default_rng(2)
    for number in range(N_CASES):
        rows, columns = np.mgrid[:48, :40]
        disc = (np.hypot(rows - rng.integers(16, 32), columns - 20) < 9).astype(np.uint8)
        colour = np.array([[200, 90, 80], [90, 180, 60]])[disc] + rng.integers(-20, 20, (48, 40, 3))
        image = SimpleITK.GetImageFromArray(colour.astype(np.uint8), isVector=True)
        (raw / "imagesTr").mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(raw / "imagesTr" / f"p{number}_0000.png"))
        write_image(raw / "labelsTr" / f"p{number}.png", disc, (1.0, 1.0))
    described = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "disc": 1}}
    write_json(raw / "dataset.json", {**described, "numTraining": N_CASES, "file_ending": ".png"})


def plan_with_nnunet(raw: Path, preprocessed: Path, configurations: tuple[str, ...]) -> NnunetDataset:
    """Plan and preprocess with nnU-Net itself."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from nnunetv2_mod.environment import nnunet_roots, threads_for_pools

    folder = preprocessed / raw.name
    folder.mkdir(parents=True)
    with nnunet_roots(raw.parent, preprocessed, preprocessed / "unused"), threads_for_pools():
        extractor = DatasetFingerprintExtractor(raw.name, num_processes=1)
        extractor.show_progress_bar = False
        extractor.num_foreground_voxels_for_intensitystats = 10**5
        extractor.run(overwrite_existing=True)
        ExperimentPlanner(raw.name).plan_experiment()
        plans, described = read_json(folder / "nnUNetPlans.json"), read_json(raw / "dataset.json")
        manager = PlansManager(plans)
        for name in configurations:
            configuration = manager.get_configuration(name)
            target = folder / configuration.data_identifier
            target.mkdir()
            for case, files in get_filenames_of_train_images_and_targets(str(raw), described).items():
                configuration.preprocessor_class(verbose=False).run_case_save(
                    str(target / case), files["images"], files["label"], manager, configuration, described
                )
    shutil.copyfile(raw / "dataset.json", folder / "dataset.json")
    return NnunetDataset(raw.name, folder, raw, plans, described)


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Planned:
    root = tmp_path_factory.mktemp("ct")
    write_ct(root / "raw/Dataset001_Spheres")
    dataset = plan_with_nnunet(root / "raw/Dataset001_Spheres", root / "preprocessed", ("3d_fullres", "2d"))
    plans = [spatial_plan_from_json(dataset.plans, name) for name in ("3d_fullres", "2d")]
    return Planned(dataset, *plans)


@pytest.fixture(scope="module")
def mr(tmp_path_factory) -> Planned:
    root = tmp_path_factory.mktemp("mr")
    write_mr(root / "raw/Dataset002_Heads")
    dataset = plan_with_nnunet(root / "raw/Dataset002_Heads", root / "preprocessed", ("3d_fullres",))
    plans = [spatial_plan_from_json(dataset.plans, name) for name in ("3d_fullres", "2d")]
    return Planned(dataset, *plans)


@pytest.fixture(scope="module")
def colour(tmp_path_factory) -> Planned:
    root = tmp_path_factory.mktemp("colour")
    write_colour(root / "raw/Dataset003_Discs")
    dataset = plan_with_nnunet(root / "raw/Dataset003_Discs", root / "preprocessed", ("2d",))
    plan = spatial_plan_from_json(dataset.plans, "2d")
    return Planned(dataset, plan, plan)


@pytest.fixture
def copied(ct: Planned, tmp_path: Path) -> NnunetDataset:
    """The CT dataset, to be spoiled."""
    shutil.copytree(ct.dataset.preprocessed, tmp_path / "copied")
    return replace(ct.dataset, preprocessed=tmp_path / "copied")


def settings_for(size: tuple[int, ...], n_channels: int = 1, n_labels: int = 0, **config) -> DiffusionSettings:
    denoiser = DenoiserSettings(n_channels, (4,), 1, (3,) * len(size), (), (), (False,))
    return DiffusionSettings(
        config=DiffusionConfig(**config),
        image_size=size,
        n_channels=n_channels,
        n_label_channels=n_labels,
        autoencoder=None,
        denoiser=denoiser,
        batch_size=6,
        n_accumulated=1,
        precision="fp32",
        learning_rate=1e-4,
        kimg=1.0,
        ema_kimg=0.1,
        n_epochs=1,
        steps_per_epoch=1,
    )


def whole(planned: Planned, size: tuple[int, ...], n_labels: int, n_channels: int = 1) -> tuple[CropData, list[str]]:
    settings = settings_for(size, n_channels, n_labels)
    data = CropData(planned.dataset, planned.volumes, settings, 0, seed=1)
    order = np.random.default_rng(derive_seed(1, "order", 0)).permutation(len(data.split.train))
    return data, [data.split.train[i] for i in order]


SMALL = (6, 12, 10)
WHOLE = (12, 26, 22)  # of a case, in the order of the array's axes


# Round trip (defect 17)


def test_the_phantom_is_transposed_by_nnunet(ct: Planned) -> None:
    """Otherwise the tests below would show nothing of it."""
    assert ct.volumes.transpose_forward == (2, 0, 1) and ct.volumes.transpose_backward == (1, 2, 0)
    assert ct.volumes.spacing_mm == ARRAY_SPACING_MM


def test_a_case_comes_back_as_the_file_it_was(ct: Planned, tmp_path: Path) -> None:
    """Spec defect 17: samples had neither geometry nor intensities."""
    data, names = whole(ct, WHOLE, n_labels=2)
    shown = data.at(0, 1)[0].numpy()
    facts = facts_from(json.loads(json.dumps(data.facts)))
    labels = channels_as_labels(shown[None, 1:])[0]
    image_file, label_file = write_sample(tmp_path, "syn", shown[:1], facts, labels)
    assert [path.relative_to(tmp_path).as_posix() for path in (image_file, label_file)] == [
        "imagesTr/syn_0000.nii.gz",
        "labelsTr/syn.nii.gz",
    ]
    written, original = read_image(image_file), read_image(ct.dataset.raw / f"imagesTr/{names[0]}_0000.nii.gz")
    assert written.GetSpacing() == original.GetSpacing() == FILE_SPACING_MM[::-1]
    assert written.GetPixelID() == original.GetPixelID() == SimpleITK.sitkInt16
    (channel,), restored = facts.channels, facts.channels[0].restored
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
    facts = facts_from(data.facts)
    for number, crop in enumerate(data.at(0, 2).numpy()):
        write_sample(tmp_path, f"s{number}", crop[:1], facts, channels_as_labels(crop[None, 1:])[0])
    write_dataset_json(tmp_path, facts, n_axes=3, n_cases=2)
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
    (path,) = write_sample(tmp_path, "slice", crop, facts_from(data.facts))
    image = read_image(path)
    assert image.GetSize() == (1, 22, 26) and image.GetSpacing() == pytest.approx(FILE_SPACING_MM[::-1])


def test_colour_pictures_come_back(colour: Planned, tmp_path: Path) -> None:
    data, names = whole(colour, (48, 40), n_labels=1, n_channels=3)
    shown = data.at(0, 1)[0].numpy()
    facts = facts_from(data.facts)
    image_file, label_file = write_sample(tmp_path, "syn", shown[:3], facts, channels_as_labels(shown[None, 3:])[0])
    assert (image_file.name, label_file.name) == ("syn_0000.png", "syn.png")
    image, original = read_image(image_file), read_image(colour.dataset.raw / f"imagesTr/{names[0]}_0000.png")
    written, expected = (SimpleITK.GetArrayFromImage(one).astype(float) for one in (image, original))
    assert image.GetPixelID() == original.GetPixelID() == SimpleITK.sitkVectorUInt8
    assert facts.channels[0].restored.space == "source"
    scaled = [np.corrcoef(written[..., c].ravel(), expected[..., c].ravel())[0, 1] for c in range(3)]
    assert min(scaled) > 0.999  # z-scores come back with the median image's mean and deviation
    assert np.abs(written - expected).mean() < 8
    truth = SimpleITK.GetArrayFromImage(read_image(colour.dataset.raw / f"labelsTr/{names[0]}.png"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(read_image(label_file)), truth)


def test_outside_the_mask_is_background_again(mr: Planned, tmp_path: Path) -> None:
    """nnU-Net leaves a 0 there, which among z-scores is the mean of the head."""
    assert mr.volumes.use_mask_for_norm == (True, True)
    data, names = whole(mr, (8, 20, 26), n_labels=0, n_channels=2)  # larger than the head: padded too
    facts = facts_from(data.facts)
    files = write_sample(tmp_path, "syn", data.at(0, 1)[0].numpy(), facts)
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
    facts = CropData(colour.dataset, colour.slices, settings_for((8, 8), 3), 0, seed=0).facts
    without_raw = CropData(replace(colour.dataset, raw=None), colour.slices, settings_for((8, 8), 3), 0, seed=0).facts
    assert facts["rgb"] and without_raw["rgb"] and without_raw["dtype"] == "uint8"
    grey = np.linspace(-1, 1, 3 * 64).reshape(3, 8, 8)
    (one,) = write_sample(tmp_path, "unknown", grey, facts_from(without_raw))
    written = SimpleITK.GetArrayFromImage(read_image(one))
    assert written.min() == 0 and written.max() == 255  # stretched, as the units are unknown
    three = write_sample(tmp_path, "grey", grey, facts_from({**facts, "rgb": False}))
    assert [path.name for path in three] == ["grey_0000.png", "grey_0001.png", "grey_0002.png"]
    assert {read_image(path).GetPixelID() for path in three} == {SimpleITK.sitkUInt8}


def test_without_raw_images_z_scores_are_said_to_be_normalised(mr: Planned, caplog) -> None:
    settings = settings_for(SMALL, n_channels=2)
    data = CropData(replace(mr.dataset, raw=None), mr.volumes, settings, 0, seed=1)
    facts = facts_from(data.facts)
    assert [channel.restored.space for channel in facts.channels] == ["normalised", "normalised"]
    assert facts.dtype == "float32" and "ZScoreNormalization" in caplog.text


def test_the_mni_brain_comes_back(tmp_path: Path) -> None:
    """A real volume in z-scores: cut, windowed and written, it is what it was up to the clipping."""
    wheel = os.environ.get("AUTOSHARE_NILEARN_WHEEL", "")
    found = [Path(wheel)] if wheel else sorted(SHARED_DATA.glob("**/nilearn-*.whl"))
    if not found or not found[0].is_file():
        pytest.skip("no nilearn wheel (pip download --no-deps nilearn; AUTOSHARE_NILEARN_WHEEL names it)")
    from dataset.mni_slices import read_template

    volume = read_template(found[0])[::3, ::3, ::3].astype(np.float32)
    raw = tmp_path / "raw/Dataset004_Brain"
    for number in range(5):
        write_image(raw / f"imagesTr/b{number}_0000.nii.gz", volume * (1 + number / 100), (3.0, 3.0, 3.0))
        write_image(raw / f"labelsTr/b{number}.nii.gz", (volume > 200).astype(np.uint8), (3.0, 3.0, 3.0))
    described = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "bright": 1}}
    write_json(raw / "dataset.json", {**described, "numTraining": 5, "file_ending": ".nii.gz"})
    dataset = plan_with_nnunet(raw, tmp_path / "preprocessed", ("3d_fullres",))
    plan = spatial_plan_from_json(dataset.plans, "3d_fullres")
    size = CaseFolder(dataset.preprocessed / plan.data_identifier, 1).size("b2")
    data = CropData(dataset, plan, settings_for(size, n_labels=1), "all", seed=0)
    (case,) = np.flatnonzero(np.array(data.split.train)[data._order(0)] == "b2")
    shown = data.at(0, 5)[case].numpy()
    (path,) = write_sample(tmp_path, "syn", shown[:1], facts_from(data.facts))
    written = SimpleITK.GetArrayFromImage(read_image(path))
    inside = np.nonzero(volume)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in inside)
    expected = volume[box] * 1.02  # the median image
    assert written.shape == expected.shape and read_image(path).GetSpacing() == (3.0, 3.0, 3.0)
    assert np.quantile(np.abs(written - expected), 0.999) < 1 and expected.max() > 240


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

    refused("shape .1,", folder / "case_0.b2nd", n_channels=2)
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
    facts = dict(CropData(ct.dataset, ct.volumes, settings_for(SMALL), 0, seed=0).facts)
    assert facts_from(facts)
    with pytest.raises(InputError):
        facts_from(facts | change)
