"""One plan for several sites from what each says about its images as a whole: no case's shape or spacing travels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json
from nnunetv2_mod.environment import nnunet_roots, threads_for_pools
from nnunetv2_mod.plan import PLANS_NAME, PlanSettings, overridden

FINE_SPACING_PERCENTILE = 10  # nnU-Net's target spacing along a coarse axis
FINE_SHARE = 0.2  # of the cases that stand for a site; any share between 0.1 and 0.5 keeps percentile and median
SHARED_INTENSITIES = ("mean", "std", "median", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True)
class SiteStatistics:
    """All that a site tells for the common plan; lengths in voxels and mm, axes in file order (z, y, x)."""

    n_cases: int
    median_shape: tuple[float, ...]
    median_spacing_mm: tuple[float, ...]
    fine_spacing_mm: tuple[float, ...]  # 10th percentile
    intensities: Mapping[str, Mapping[str, float]]  # by channel; of foreground voxels, without minimum and maximum
    relative_size_after_cropping: float
    image_reader_writer: str
    dataset_json: Mapping[str, Any]  # channel names, labels, file ending


def site_statistics(planned: Path) -> SiteStatistics:
    """The statistics of a dataset that ``plan_dataset`` wrote."""
    (dataset,) = sorted((planned / "preprocessed").glob("Dataset*"))
    fingerprint = read_json(dataset / "dataset_fingerprint.json")
    description = read_json(dataset / "dataset.json")
    shapes, spacings = np.array(fingerprint["shapes_after_crop"]), np.array(fingerprint["spacings"], float)
    return SiteStatistics(
        n_cases=int(description["numTraining"]),
        median_shape=tuple(np.median(shapes, axis=0).tolist()),
        median_spacing_mm=tuple(np.median(spacings, axis=0).tolist()),
        fine_spacing_mm=tuple(np.percentile(spacings, FINE_SPACING_PERCENTILE, axis=0).tolist()),
        intensities={
            channel: {name: float(values[name]) for name in SHARED_INTENSITIES}
            for channel, values in fingerprint["foreground_intensity_properties_per_channel"].items()
        },
        relative_size_after_cropping=float(fingerprint["median_relative_size_after_cropping"]),
        image_reader_writer=read_json(planned / "plans.json")["image_reader_writer"],
        dataset_json={key: description[key] for key in ("channel_names", "labels", "file_ending")},
    )


def negotiate_plan(
    statistics: Mapping[str, SiteStatistics], out: Path, dataset_name: str, settings: PlanSettings
) -> Path:
    """Let nnU-Net plan for the union of the sites; each stands there with as many median cases as it has cases.

    With one site this is the site's own plan as long as its cases share one spacing (2D images always do).

    Returns:
        ``out/plans.json``; ``out/dataset.json`` lies beside it.

    Raises:
        InputError: sites whose channels, labels or file types differ.
    """
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    sites = list(statistics.values())
    _check_alike(statistics)
    description = {**sites[0].dataset_json, "numTraining": sum(site.n_cases for site in sites)}
    raw, preprocessed = out / "planning" / "raw" / dataset_name, out / "planning" / "preprocessed" / dataset_name
    for folder in (raw / "imagesTr", raw / "labelsTr"):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(raw / "dataset.json", description)
    write_json(preprocessed / "dataset_fingerprint.json", _fingerprint(sites))

    class HubPlanner(ExperimentPlanner):
        """The hub has no image to try readers on: the sites say which one they use."""

        def determine_reader_writer(self) -> type:
            return type(sites[0].image_reader_writer, (), {})

    with nnunet_roots(raw.parent, preprocessed.parent, out / "unused"), threads_for_pools():
        HubPlanner(
            dataset_name, gpu_memory_target_in_gb=settings.gpu_memory_gb, plans_name=PLANS_NAME
        ).plan_experiment()
    write_json(out / "plans.json", overridden(read_json(preprocessed / f"{PLANS_NAME}.json"), settings))
    write_json(out / "dataset.json", description)
    return out / "plans.json"


def _check_alike(statistics: Mapping[str, SiteStatistics]) -> None:
    first, *others = sorted(statistics)
    for name in others:
        for key in ("dataset_json", "image_reader_writer"):
            here, there = getattr(statistics[first], key), getattr(statistics[name], key)
            if here != there:
                raise InputError(
                    f"site {first} has {here}, site {name} has {there}",
                    where="federated plan",
                    fix="let all sites use the same channel names, label ids and file type",
                )


def _fingerprint(sites: Sequence[SiteStatistics]) -> dict[str, Any]:
    """nnU-Net's fingerprint of cases that stand for the real ones."""
    n_total = sum(site.n_cases for site in sites)
    shapes: list[list[float]] = []
    spacings: list[list[float]] = []
    for site in sites:
        n_fine = math.ceil(FINE_SHARE * site.n_cases)
        shapes += [list(site.median_shape)] * site.n_cases
        spacings += [list(site.fine_spacing_mm)] * n_fine
        spacings += [list(site.median_spacing_mm)] * (site.n_cases - n_fine)
    shares = [site.n_cases / n_total for site in sites]
    return {
        "shapes_after_crop": shapes,
        "spacings": spacings,
        "median_relative_size_after_cropping": sum(
            share * site.relative_size_after_cropping for share, site in zip(shares, sites, strict=True)
        ),
        "foreground_intensity_properties_per_channel": {
            channel: _pooled([site.intensities[channel] for site in sites], shares) for channel in sites[0].intensities
        },
    }


def _pooled(intensities: Sequence[Mapping[str, float]], shares: Sequence[float]) -> dict[str, float]:
    """Mean and deviation of the mixture of the sites; percentiles as the mean of theirs, which is an approximation."""
    pooled = {
        name: sum(share * values[name] for share, values in zip(shares, intensities, strict=True))
        for name in SHARED_INTENSITIES
    }
    variance = sum(
        share * (values["std"] ** 2 + (values["mean"] - pooled["mean"]) ** 2)
        for share, values in zip(shares, intensities, strict=True)
    )
    return {**pooled, "std": math.sqrt(variance), "min": pooled["percentile_00_5"], "max": pooled["percentile_99_5"]}
