"""Fingerprint, plan and preprocessed cases of one raw dataset, in a root of its own."""

from __future__ import annotations

import copy
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json, write_json
from common.progress import Progress, silent
from nnunetv2_mod.environment import nnunet_roots, threads_for_pools

log = logging.getLogger(__name__)

CONFIGURATION = "2d"
PLANS_NAME = "nnUNetPlans"
N_INTENSITY_PIXELS_2D = 10**6
MAX_FEATURES_2D = 512  # nnU-Net's cap for 2D networks


@dataclass(frozen=True)
class PlanSettings:
    """What may deviate from nnU-Net's own plan, for small machines; ``None`` keeps what nnU-Net planned."""

    gpu_memory_gb: float = 8.0
    base_features: int | None = None
    batch_size: int | None = None


def plan_dataset(
    raw_dataset: Path,
    out: Path,
    settings: PlanSettings,
    splits: Mapping[str, list[str]],
    progress: Progress = silent,
) -> Path:
    """Plan and preprocess ``raw_dataset`` (a ``DatasetXXX_Name`` folder) for the 2D configuration.

    Args:
        out: receives ``plans.json`` and ``preprocessed/DatasetXXX_Name/`` (nnU-Net's own layout).
        splits: ``{"train": [...], "val": [...]}``, the only split written for nnU-Net.

    Returns:
        The path of ``plans.json``.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    _check_name(raw_dataset)
    preprocessed = out / "preprocessed"
    (preprocessed / raw_dataset.name).mkdir(parents=True, exist_ok=True)
    with nnunet_roots(raw_dataset.parent, preprocessed, out / "unused"), threads_for_pools():
        extractor = DatasetFingerprintExtractor(raw_dataset.name, num_processes=1)
        extractor.show_progress_bar = False
        if read_json(raw_dataset / "dataset.json")["file_ending"] == ".png":
            # these statistics only normalise CT; nnU-Net would draw 10^8 pixels from however few there are
            extractor.num_foreground_voxels_for_intensitystats = N_INTENSITY_PIXELS_2D
        extractor.run(overwrite_existing=True)
        ExperimentPlanner(
            raw_dataset.name, gpu_memory_target_in_gb=settings.gpu_memory_gb, plans_name=PLANS_NAME
        ).plan_experiment()
    plans = read_json(preprocessed / raw_dataset.name / f"{PLANS_NAME}.json")
    return _preprocess(raw_dataset, out, overridden(plans, settings), splits, progress)


def adopt_plan(
    raw_dataset: Path,
    plans: Mapping[str, Any],
    out: Path,
    splits: Mapping[str, list[str]],
    progress: Progress = silent,
) -> Path:
    """Preprocess ``raw_dataset`` with the plan of another dataset: the whole plan, not its topology alone.

    A network pretrained under a plan expects that plan's spacing, transposition and normalisation; cases that were
    preprocessed under another one would not match what it sees at test time (D12).
    """
    _check_name(raw_dataset)
    folder = out / "preprocessed" / raw_dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "dataset_fingerprint.json", {"plan_adopted_from": plans["dataset_name"]})
    adopted = {**plans, "dataset_name": raw_dataset.name}
    return _preprocess(raw_dataset, out, adopted, splits, progress)


def with_batch_norm(plans: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with batch in place of instance normalisation: its running statistics are part of the network."""
    changed = copy.deepcopy(dict(plans))
    for configuration in changed["configurations"].values():
        kwargs = configuration.get("architecture", {}).get("arch_kwargs", {})
        if "norm_op" in kwargs:
            n_axes = kwargs["norm_op"][-2:]  # "2d" or "3d"
            kwargs["norm_op"] = f"torch.nn.modules.batchnorm.BatchNorm{n_axes}"
    return changed


def _check_name(raw_dataset: Path) -> None:
    if not re.fullmatch(r"Dataset\d{3}_\w+", raw_dataset.name):
        raise InputError(
            f"{raw_dataset.name!r} is no nnU-Net dataset name",
            where=raw_dataset,
            fix="name the folder DatasetXXX_Name with a three-digit id",
        )


def overridden(plans: dict[str, Any], settings: PlanSettings) -> dict[str, Any]:
    """The 2D plan alone, with what ``settings`` deviates from nnU-Net."""
    config = plans["configurations"][CONFIGURATION]
    kwargs = config["architecture"]["arch_kwargs"]
    if settings.base_features is not None:
        kwargs["features_per_stage"] = [
            min(settings.base_features * 2**stage, MAX_FEATURES_2D) for stage in range(kwargs["n_stages"])
        ]
    if settings.batch_size is not None:
        config["batch_size"] = settings.batch_size
    plans["configurations"] = {CONFIGURATION: config}
    return plans


def _preprocess(
    raw_dataset: Path,
    out: Path,
    plans: dict[str, Any],
    splits: Mapping[str, list[str]],
    progress: Progress,
) -> Path:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = out / "preprocessed" / raw_dataset.name
    write_json(folder / f"{PLANS_NAME}.json", plans)
    write_json(folder / "splits_final.json", [{part: sorted(splits[part]) for part in ("train", "val")}])
    shutil.copyfile(raw_dataset / "dataset.json", folder / "dataset.json")
    dataset_json = read_json(folder / "dataset.json")
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    target = folder / configuration.data_identifier
    target.mkdir(exist_ok=True)
    with threads_for_pools():
        cases = get_filenames_of_train_images_and_targets(str(raw_dataset), dataset_json)
    for n_done, (case, files) in enumerate(sorted(cases.items()), start=1):
        configuration.preprocessor_class(verbose=False).run_case_save(
            str(target / case), files["images"], files["label"], manager, configuration, dataset_json
        )
        progress(n_done, len(cases), "cases")
    write_json(out / "plans.json", plans)
    log.info("%s: %d cases, patch %s", raw_dataset.name, len(cases), configuration.patch_size)
    return out / "plans.json"
