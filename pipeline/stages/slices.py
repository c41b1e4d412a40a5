"""The images that a generator trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from common.files import read_json
from common.image_set import save_image_set, save_labels
from common.plan import Plan, load_plan
from dataset.images import read_image
from dataset.label_maps import fitted_label_maps
from dataset.slices import SliceCase, build_slices, case_of_image, through_plane_spacing_mm
from engine.run_stage import StageContext
from nnunetv2_mod import read_preprocessed
from nnunetv2_mod.raw_dataset import raw_dataset


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
