"""From a site's source to nnU-Net's raw dataset, plan, and the generator's slices."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json, write_json
from common.image_set import save_image_set, save_labels
from common.plan import Plan, load_plan
from dataset.convert import write_raw_dataset
from dataset.folds import assign_folds
from dataset.images import read_image
from dataset.label_maps import fitted_label_maps
from dataset.slices import SliceCase, build_slices, case_of_image, through_plane_spacing_mm
from dataset.source import SourceConfig, load_cases
from engine.run_stage import StageContext
from nnunetv2_mod import PlanSettings, plan_dataset, read_preprocessed


def raw_dataset(prepared: Path) -> Path:
    """The one nnU-Net raw dataset in a prepare stage's folder."""
    (dataset,) = sorted((prepared / "raw").glob("Dataset*"))
    return dataset


def prepare(context: StageContext) -> None:
    """One site's cases of one outer fold as an nnU-Net raw dataset: training and validation patients, test patients."""
    settings = context.stage.settings
    environment = context.stage.environment
    source = dataclasses.replace(context.settings(SourceConfig, "source"), root=environment["root"])
    cases = [case for case in load_cases(source, Path(environment["data"])) if case.site == context.stage.site]
    split = assign_folds(cases, settings["fold_seed"])[context.stage.fold]
    write_raw_dataset(cases, split, context.out / "raw" / settings["dataset_name"], source, context.progress)


def prepare_all(context: StageContext) -> None:
    """The union of all sites, as links: the upper bound that a deployment does not have."""
    target = context.out / "raw" / context.stage.settings["dataset_name"]
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    patients: dict[str, str] = {}
    dataset_json: dict[str, Any] = {}
    n_training = 0
    for prepared in context.inputs.values():
        site_dataset = raw_dataset(prepared)
        for file in sorted(site_dataset.glob("*/*")):
            link = target / file.relative_to(site_dataset)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(file, link.parent))
        for part, names in read_json(site_dataset.parent / "splits.json").items():
            splits[part] += names
        patients |= read_json(site_dataset.parent / "patients.json")
        dataset_json = read_json(site_dataset / "dataset.json")
        n_training += dataset_json["numTraining"]
    write_json(target / "dataset.json", {**dataset_json, "numTraining": n_training})
    write_json(target.parent / "splits.json", splits)
    write_json(target.parent / "patients.json", patients)


def plan(context: StageContext) -> None:
    """nnU-Net's fingerprint, plan and preprocessed cases."""
    dataset = raw_dataset(context.inputs["prepare"])
    splits = read_json(dataset.parent / "splits.json")
    plan_dataset(dataset, context.out, context.settings(PlanSettings, "plan"), splits, context.progress)


def slices(context: StageContext) -> None:
    """The site's images as the generator sees them: at the plan's spacing and patch size.

    Where the generator makes labels too, their label maps lie beside them.
    """
    planned = context.inputs["plan"]
    plan = load_plan(planned / "plans.json")
    dataset = raw_dataset(context.inputs["prepare"])
    volumetric = read_json(dataset / "dataset.json")["file_ending"] != ".png"
    read = partial(_volume, planned, plan) if volumetric else partial(_flat_image, dataset)
    image_set = build_slices(
        partial(_slice_cases, dataset, read),
        plan,
        space="normalised" if volumetric else "source",
        volumetric=volumetric,
        min_slice_distance_mm=context.stage.settings["min_slice_distance_mm"],
        progress=context.progress,
    )
    if "labels" in context.stage.settings:
        save_labels(context.out, fitted_label_maps(image_set, context.inputs["prepare"], planned))
    save_image_set(context.out, image_set)


def _slice_cases(dataset: Path, read: Callable[[str, str, str], SliceCase]) -> Iterator[SliceCase]:
    splits = read_json(dataset.parent / "splits.json")
    patients = read_json(dataset.parent / "patients.json")
    for split in ("train", "val"):
        for case in splits[split]:
            yield read(case, patients[case], split)


def _flat_image(dataset: Path, case: str, patient: str, split: str) -> SliceCase:
    """2D: the source's own pixels, from one file or one per channel."""
    files = sorted((dataset / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].png"))
    return case_of_image(case, patient, split, np.concatenate([read_image(file).array for file in files]))


def _volume(planned: Path, plan: Plan, case: str, patient: str, split: str) -> SliceCase:
    """3D: nnU-Net's preprocessed case, already normalised, resampled and transposed."""
    read = read_preprocessed(planned, case)
    spacing_mm = through_plane_spacing_mm(read.file_spacing_mm, plan.transpose_forward)
    return SliceCase(case, patient, split, read.array, spacing_mm, read.outside)
