"""The pooled synthetic set, made of packages alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import InputError
from common.files import read_json, write_json
from engine.run_stage import StageContext
from nnunetv2_mod import PlanSettings, adopt_plan, plan_dataset
from nnunetv2_mod.raw_dataset import dataset_json
from pipeline.synthetic_cases import split_synthetic
from sharing import (
    Package,
    Refusal,
    read_drop_list,
    read_refusal,
    statements,
    verify_package,
)

log = logging.getLogger(__name__)

PACKAGE = "package:"  # role of an input, before the site's name
CHECK = "check:"  # before the name of the site that checked, and that of the package's site


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
    for site, package in packages.items():
        log.info("package of site %s: %s", site, " ".join(statements(package.audit)))
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
    first, n_cases = next(iter(packages.values())).manifest, sum(len(cases) for cases in kept.values())
    write_json(target / "dataset.json", dataset_json(first.channel_names, first.labels, n_cases, first.file_ending))
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
            named, manifest = read_drop_list(folder, checked_by, package), package.manifest
            log.info("site %s names %d of %d cases of %s", checked_by, len(named), manifest.n_cases, manifest.site)
            dropped |= named
    return [case for case in package.manifest.cases if case not in dropped]


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
            raise InputError(
                f"this is a package of site {manifest.site}", where=package.folder, fix=f"put that of {site} here"
            )
        for key in ("channel_names", "labels", "file_ending"):
            if getattr(manifest, key) != getattr(first, key):
                raise InputError(
                    f"{site} has {key} {getattr(manifest, key)}, {first.site} has {getattr(first, key)}",
                    where=target,
                    fix="let all sites use the same channel names, label ids and file type",
                )
