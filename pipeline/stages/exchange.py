"""What crosses a site's border: the package a site writes, and the pooled set made of packages alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json
from common.image_set import ImageSet, load_image_set
from common.plan import Plan, load_plan
from common.progress import Progress
from common.settings import from_dict, to_dict
from engine.run_stage import StageContext
from memorization.gates import PlantedRecall
from memorization.site_audit import REFUSED, SiteAudit
from nnunetv2_mod import PlanSettings, adopt_plan, plan_dataset
from pipeline.stages.prepare import raw_dataset
from pipeline.stages.segment import UNUSED_SPACING, shared_images
from sharing import (
    FailedGate,
    Package,
    PackageFacts,
    Refusal,
    SharedAudit,
    SharedFigure,
    SharedGate,
    SharedPlanted,
    SyntheticCase,
    dataset_json,
    read_drop_list,
    read_refusal,
    rounded,
    rounded_share,
    verify_package,
    write_package,
    write_refusal,
)

log = logging.getLogger(__name__)

Normalisation = tuple[tuple[float, float], ...]
PACKAGE = "package:"  # role of an input, before the site's name
CHECK = "check:"  # before the name of the site that checked, and that of the package's site
PRIVATE_GENERATOR_KEYS = ("n_images",)  # how many real images a site has is its own business


def share(context: StageContext) -> None:
    """Write the site's package: kept synthetic images and their labels, a minimal manifest, figures, a card.

    Where the site's audit refuses, write the refusal in its place.
    """
    audit = from_dict(SiteAudit, read_json(context.inputs["audit"] / "audit.json"))
    if audit.verdict == REFUSED:
        failed = tuple(FailedGate(gate.name, gate.reason, gate.what_would_help) for gate in audit.failed)
        refusal = Refusal(context.stage.site, shared_audit(audit), failed)
        log.error("%s", refusal)
        write_refusal(context.out, refusal)
        return
    kept = load_image_set(context.inputs["filter"])
    labels = np.load(context.inputs["label"] / "labels.npy", mmap_mode="r")
    hounsfield = ct_normalisation(load_plan(context.inputs["plan"] / "plans.json"))
    dataset_json = read_json(raw_dataset(context.inputs["prepare"]) / "dataset.json")
    generator = read_json(context.inputs["generator"] / "settings.json")
    settings = context.stage.settings
    facts = PackageFacts(
        **what_images_are(kept, hounsfield, dataset_json, settings["min_slice_distance_mm"]),
        site=context.stage.site,
        generator={key: value for key, value in generator.items() if key not in PRIVATE_GENERATOR_KEYS},
        privacy=_privacy(read_json(context.inputs["filter"] / "filter.json"), audit),
    )
    cases = synthetic_cases(context.stage.site, kept, labels, hounsfield, settings["stack_size"], context.progress)
    write_package(context.out, cases, facts, kept.info.volumetric)


def what_images_are(
    kept: ImageSet, hounsfield: Normalisation, dataset_json: Mapping[str, Any], min_slice_distance_mm: float
) -> dict[str, Any]:
    """Channels, labels, spacing and intensities of synthetic images, as fields of ``PackageFacts``.

    The spacing is that of the shared pixels, on which the site's scale is undone.
    """
    through_plane_mm = min_slice_distance_mm if kept.info.volumetric else UNUSED_SPACING
    return {
        "channel_names": tuple(dataset_json["channel_names"][str(i)] for i in range(kept.images.shape[1])),
        "labels": {name: value for name, value in dataset_json["labels"].items() if value != 0},
        "spacing_mm": (through_plane_mm, *(spacing * kept.info.scale for spacing in kept.info.spacing_mm)),
        "intensity_space": "normalised" if kept.info.volumetric and not hounsfield else "source",
    }


TELL_HOW_MANY = ("n_references", "level")  # at a small site the level is one over the number of its images


def _privacy(figures: dict[str, Any], audit: SiteAudit) -> dict[str, Any]:
    kept = {key: value for key, value in figures.items() if key not in TELL_HOW_MANY}
    return {**kept, "audit": to_dict(shared_audit(audit))}


def shared_audit(audit: SiteAudit) -> SharedAudit:
    """What of an audit may leave: no number of real images or patients, no baseline (it holds both), few digits."""
    return SharedAudit(
        n_audited=audit.n_audited,
        enforced=audit.enforced,
        familywise_level=audit.familywise_level,
        figures=tuple(
            SharedFigure(one.name, rounded(one.value), rounded(one.low), rounded(one.high), rounded(one.p))
            for one in audit.figures
        ),
        planted=_shared_planted(audit.planted),
        gates=tuple(
            SharedGate(gate.name, rounded(gate.value), gate.limit, rounded(gate.p), gate.passed) for gate in audit.gates
        ),
    )


def _shared_planted(planted: PlantedRecall | None) -> SharedPlanted | None:
    if planted is None:
        return None
    mean_recall, share = rounded(planted.mean_recall), rounded_share(planted.honest_dropped_share)
    return SharedPlanted(planted.n, planted.found, float(mean_recall or 0.0), share)


def ct_normalisation(plan: Plan) -> Normalisation:
    """Mean and deviation by which nnU-Net normalised CT, by channel; empty for other images."""
    if any(scheme != "CTNormalization" for scheme in plan.normalization_schemes):
        return ()
    return tuple((channel["mean"], channel["std"]) for channel in plan.intensity)


def synthetic_cases(
    site: str, kept: ImageSet, labels: np.ndarray, hounsfield: Normalisation, stack_size: int, progress: Progress
) -> Iterator[SyntheticCase]:
    """One case per image, of volumes stacks of slices; the last one is as short as it must be (D16)."""
    size = stack_size if kept.info.volumetric else 1
    n_cases = -(-len(kept) // size)
    width = len(str(n_cases))
    for number in range(n_cases):
        indices = list(range(number * size, min((number + 1) * size, len(kept))))
        images = shared_images(kept.subset(indices))
        if kept.info.volumetric:
            images = _to_source_units(images, hounsfield).astype(np.float32)
        else:
            images = np.round(images).astype(kept.images.dtype)
        yield SyntheticCase(f"{site}_syn_{number:0{width}d}", np.moveaxis(images, 0, 1), np.asarray(labels[indices]))
        progress(number + 1, n_cases, "cases")


def _to_source_units(images: np.ndarray, hounsfield: Normalisation) -> np.ndarray:
    """Undo nnU-Net's CT normalisation, so that Hounsfield units are shared, negative ones included (D6)."""
    if not hounsfield:
        return images
    mean, std = np.array(hounsfield).T[:, :, None, None]
    return np.asarray(images * std + mean)


def merge(context: StageContext) -> None:
    """Verify every package, then pool what no other site wants dropped, and plan the pool.

    Sites that refused to export are left out. Nothing of a site is read but its refusal, what its manifest names, and
    its answers about the others' packages.

    With ``plan_from=real_all`` the plan comes from pooled real data, for parity with the paper (D29).
    """
    settings = context.stage.settings
    target = context.out / "raw" / settings["dataset_name"]
    roles = sorted(role for role in context.inputs if role.startswith(PACKAGE))
    folders = _without_refused({role.removeprefix(PACKAGE): context.inputs[role] for role in roles}, target)
    packages = {site: verify_package(folder) for site, folder in folders.items()}
    _check_agreement(packages, target)
    kept = {site: _cases_kept(context, package) for site, package in packages.items()}
    if not any(kept.values()):
        raise InputError(
            f"other sites named every case of {', '.join(kept)}: none is left to pool",
            where=target,
            fix="see the log for how many each site named, and leave out one that names every case (data.sites)",
        )
    for site, package in packages.items():
        _link_package(package, kept[site], target)
    pooled = {
        site: (kept[site], round(package.manifest.n_images * len(kept[site]) / package.manifest.n_cases))
        for site, package in packages.items()
        if kept[site]
    }
    splits = split_synthetic(pooled, settings, context.seed)
    _write_pooled_json(target, list(packages.values()), sum(len(cases) for cases in kept.values()))
    write_json(target.parent / "splits.json", splits)
    if settings["plan_from"] == "real_all":
        plans = read_json(context.inputs["plan_all"] / "plans.json")
        adopt_plan(target, plans, context.out, splits, context.progress)
    else:
        plan_dataset(target, context.out, context.settings(PlanSettings, "plan"), splits, context.progress)


def _cases_kept(context: StageContext, package: Package) -> list[str]:
    """The cases of a package that no other site named; each answer is checked before it is used."""
    dropped: set[str] = set()
    for role, folder in context.inputs.items():
        if role.startswith(CHECK) and role.endswith(f":{package.manifest.site}"):
            checked_by = role.removeprefix(CHECK).removesuffix(f":{package.manifest.site}")
            named = read_drop_list(folder, checked_by, package)
            log.info("site %s names %d of %d cases of %s", checked_by, len(named), *_size(package))
            dropped |= named
    return [case for case in package.manifest.cases if case not in dropped]


def _size(package: Package) -> tuple[int, str]:
    return package.manifest.n_cases, package.manifest.site


def split_synthetic(
    cases_of_site: Mapping[str, tuple[Sequence[str], int]], settings: Mapping[str, Any], seed: int
) -> dict[str, list[str]]:
    """Cases that train and that validate, site by site: a share of each site's, and at most so many images.

    A site's only case trains. Where no site has more than one, one of them validates; a single case does both.

    Args:
        cases_of_site: names of the cases, and how many images they hold together.
    """
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for names, n_images in cases_of_site.values():
        images_per_case = max(1, n_images // len(names))
        most = min(len(names) - 1, max(1, settings["max_validation_images"] // images_per_case))
        n_validation = min(most, max(1, int(settings["validation_fraction"] * len(names))))
        order = np.random.default_rng(seed).permutation(len(names))
        splits["val"] += [names[i] for i in order[:n_validation]]
        splits["train"] += [names[i] for i in order[n_validation:]]
    if not splits["val"]:
        splits["val"] = [splits["train"].pop()] if len(splits["train"]) > 1 else list(splits["train"])
    return splits


def _without_refused(folders: Mapping[str, Path], target: Path) -> dict[str, Path]:
    refused = {site: refusal for site, folder in folders.items() if (refusal := read_refusal(folder)) is not None}
    for site, refusal in refused.items():
        log.warning("left out of the pool: %s", Refusal(site, refusal.audit, refusal.failed))
    left = {site: folder for site, folder in folders.items() if site not in refused}
    if not left:
        raise InputError(
            f"every site refused to export its synthetic images: {', '.join(refused)}",
            where=target,
            fix="read share/<site>/REFUSED.md: each gate says what would help",
        )
    return left


def _link_package(package: Package, cases: Sequence[str], target: Path) -> None:
    """Link the images and labels that were verified, by the names that were verified."""
    for case in cases:
        for name in (*package.manifest.images_of(case), package.manifest.labels_of(case)):
            link = target / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(package.folder / name, link.parent))


def _check_agreement(packages: Mapping[str, Package], target: Path) -> None:
    """A package is its own site's, and all hold the same channels, labels and file type."""
    first = next(iter(packages.values())).manifest
    for site, package in packages.items():
        manifest = package.manifest
        if manifest.site != site:
            raise InputError(f"a package of site {manifest.site}", where=package.folder, fix=f"put that of {site} here")
        for key in ("channel_names", "labels", "file_ending"):
            if getattr(manifest, key) != getattr(first, key):
                raise InputError(
                    f"{site} has {key} {getattr(manifest, key)}, {first.site} has {getattr(first, key)}",
                    where=target,
                    fix="let all sites use the same channel names, label ids and file type",
                )


def _write_pooled_json(target: Path, packages: Sequence[Package], n_cases: int) -> None:
    first = packages[0].manifest
    write_json(target / "dataset.json", dataset_json(first.channel_names, first.labels, n_cases, first.file_ending))
