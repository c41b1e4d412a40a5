"""Phantoms in nnU-Net's folders, planned and preprocessed by nnU-Net itself; settings of a tiny diffusion model."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

from common.files import read_json, write_json
from common.plan import Plan, plan_from_json
from diffusion.settings import DenoiserSettings, DiffusionConfig, DiffusionSettings
from nnunetv2_mod.nnunet_folder import NnunetDataset

N_CASES = 7
FILE_SHAPE, FILE_SPACING_MM = (26, 22, 12), (1.5, 1.0, 4.0)  # z, y, x: the coarse axis is the file's last
ARRAY_SPACING_MM = (4.0, 1.5, 1.0)  # x, z, y
SMALL = (6, 12, 10)
WHOLE = (12, 26, 22)  # of a case, in the order of the array's axes


@dataclass(frozen=True)
class Planned:
    dataset: NnunetDataset
    volumes: Plan
    slices: Plan


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


def mni_template(name: str) -> np.ndarray:
    """A volume of nilearn's wheel, the ICBM 152 average brain at 1 mm (x, y, z): ``t1``, ``gm`` or ``wm``, 0 to 255."""
    found = importlib.util.find_spec("nilearn")
    assert found is not None and found.origin is not None, "nilearn is in the test extra"
    path = Path(found.origin).parent / f"datasets/data/mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    volume = np.asarray(nibabel.load(path).dataobj, np.float32)
    return np.rint(volume / np.quantile(volume, 0.999) * 255).clip(0, 255).astype(np.uint8)


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


def planned(write: Callable[[Path], None], name: str, root: Path, configurations: tuple[str, ...]) -> Planned:
    """The phantom that ``write`` draws; its last configuration is 2d."""
    write(root / "raw" / name)
    dataset = plan_with_nnunet(root / "raw" / name, root / "preprocessed", configurations)
    plans = [plan_from_json(dataset.plans, configuration) for configuration in configurations]
    return Planned(dataset, plans[0], plans[-1])


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
