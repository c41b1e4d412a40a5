"""What crosses a site's border: the package a site writes, and the pooled set made of packages alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json
from common.image_set import ImageSet, load_image_set
from common.plan import Plan, load_plan
from nnunetv2_mod import PlanSettings, adopt_plan, plan_dataset
from pipeline.run_stage import StageContext
from pipeline.stages.prepare import raw_dataset
from pipeline.stages.segment import UNUSED_SPACING, shared_images
from sharing import PackageFacts, SyntheticCase, verify_package, write_package

PRIVATE_GENERATOR_KEYS = ("n_images",)  # how many real images a site has is its own business


def share(context: StageContext) -> None:
    """Write the site's package: kept synthetic images and their labels, a minimal manifest, figures, a card."""
    kept = load_image_set(context.inputs["filter"])
    labels = np.load(context.inputs["label"] / "labels.npy", mmap_mode="r")
    plan = load_plan(context.inputs["plan"] / "plans.json")
    dataset_json = read_json(raw_dataset(context.inputs["prepare"]) / "dataset.json")
    generator = read_json(context.inputs["generator"] / "settings.json")
    facts = PackageFacts(
        site=context.stage.site,
        channel_names=tuple(dataset_json["channel_names"][str(i)] for i in range(plan.n_channels)),
        labels={name: value for name, value in dataset_json["labels"].items() if value != 0},
        spacing_mm=_spacing(kept, context.stage.settings["min_slice_distance_mm"]),
        intensity_space="normalised" if kept.info.volumetric and not _is_ct(plan) else "source",
        generator={key: value for key, value in generator.items() if key not in PRIVATE_GENERATOR_KEYS},
        privacy=_privacy(read_json(context.inputs["filter"] / "filter.json")),
    )
    stack_size = context.stage.settings["stack_size"] if kept.info.volumetric else 1
    write_package(context.out, _cases(context, kept, labels, plan, stack_size), facts, kept.info.volumetric)


def _privacy(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key != "n_references"}


def _spacing(kept: ImageSet, min_slice_distance_mm: float) -> tuple[float, float, float]:
    through_plane = min_slice_distance_mm if kept.info.volumetric else UNUSED_SPACING
    return (through_plane, *kept.info.spacing_mm)


def _is_ct(plan: Plan) -> bool:
    return all(scheme == "CTNormalization" for scheme in plan.normalization_schemes)


def _cases(
    context: StageContext, kept: ImageSet, labels: np.ndarray, plan: Plan, stack_size: int
) -> Iterator[SyntheticCase]:
    """One case per image, or stacks of slices; the last stack is as short as it must be, nothing is dropped (D16)."""
    n_cases = -(-len(kept) // stack_size)
    width = len(str(n_cases))
    for number in range(n_cases):
        indices = list(range(number * stack_size, min((number + 1) * stack_size, len(kept))))
        images = shared_images(kept.subset(indices))
        if kept.info.volumetric:
            images = _to_source_units(images, plan).astype(np.float32)
        else:
            images = np.round(images).astype(kept.images.dtype)
        name = f"{context.stage.site}_syn_{number:0{width}d}"
        yield SyntheticCase(name, np.moveaxis(images, 0, 1), np.asarray(labels[indices]))
        context.progress(number + 1, n_cases, "cases")


def _to_source_units(images: np.ndarray, plan: Plan) -> np.ndarray:
    """Undo nnU-Net's CT normalisation, so that Hounsfield units are shared, negative ones included (D6)."""
    if not _is_ct(plan):
        return images
    mean = np.array([channel["mean"] for channel in plan.intensity])[:, None, None]
    std = np.array([channel["std"] for channel in plan.intensity])[:, None, None]
    return images * std + mean


def merge(context: StageContext) -> None:
    """Verify every package, pool them, and plan the pool; reads nothing of a site but its package.

    With ``plan_from=real_all`` the plan comes from pooled real data, for parity with the paper (D29).
    """
    settings = context.stage.settings
    target = context.out / "raw" / settings["dataset_name"]
    splits: dict[str, list[str]] = {"train": [], "val": []}
    manifests = {}
    for role, package in sorted(context.inputs.items()):
        if role.startswith("package:"):
            manifests[role] = verify_package(package)
            names = _link_package(package, target)
            n_validation = _n_validation(len(names), settings, manifests[role])
            order = np.random.default_rng(context.seed).permutation(len(names))
            splits["val"] += [names[i] for i in order[:n_validation]]
            splits["train"] += [names[i] for i in order[n_validation:]]
    _write_pooled_json(target, manifests)
    write_json(target.parent / "splits.json", splits)
    if settings["plan_from"] == "real_all":
        plans = read_json(context.inputs["plan_all"] / "plans.json")
        adopt_plan(target, plans, context.out, splits, context.progress)
    else:
        plan_dataset(target, context.out, context.settings(PlanSettings, "plan"), splits, context.progress)


def _n_validation(n_cases: int, settings: Mapping[str, Any], manifest: Mapping[str, Any]) -> int:
    """At least one case and at most the stated number of images validate, and at least one trains."""
    images_per_case = max(1, manifest["n_images"] // n_cases)
    wanted = min(int(settings["validation_fraction"] * n_cases), settings["max_validation_images"] // images_per_case)
    return min(max(1, wanted), max(1, n_cases - 1))


def _link_package(package: Path, target: Path) -> list[str]:
    for file in sorted([*(package / "imagesTr").iterdir(), *(package / "labelsTr").iterdir()]):
        link = target / file.relative_to(package)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(file, link.parent))
    return sorted(file.name.split(".")[0] for file in (package / "labelsTr").iterdir())


def _write_pooled_json(target: Path, manifests: dict[str, dict[str, Any]]) -> None:
    first, *others = manifests.values()
    for role, manifest in manifests.items():
        for key in ("channel_names", "labels", "file_ending"):
            if manifest[key] != first[key]:
                raise InputError(
                    f"{role} has {key} {manifest[key]}, {first['site']} has {first[key]}",
                    where=target,
                    fix="let all sites use the same channel names, label ids and file type",
                )
    write_json(
        target / "dataset.json",
        {
            "channel_names": {str(index): name for index, name in enumerate(first["channel_names"])},
            "labels": {"background": 0, **first["labels"]},
            "numTraining": sum(manifest["n_cases"] for manifest in (first, *others)),
            "file_ending": first["file_ending"],
        },
    )
