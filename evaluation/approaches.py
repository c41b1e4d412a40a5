"""What a site gets from each approach (own, pooled, synthetic, shared, federated images), and the scaling curve."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.statistics import Interval, ScoreTable, interval

if TYPE_CHECKING:
    import pandas as pd

OURS = "syn-real"
LOCAL, LOCAL_LONG = "real", "real-long"
POOLED, POOLED_LONG = "real-all", "real-long-all"
LONGER = {LOCAL: LOCAL_LONG, POOLED: POOLED_LONG}  # the same images, trained on as long as autoshare in all
ALL_SITES = "all"
FEWER = "syn-union-real"
OTHER = "other"
APPROACHES = {  # in the tables' order; what stands under each in plain words
    "real": "own images only",
    "real-long": "own images only, trained as long as autoshare in all",
    "real-all": "pooled real images (upper bound, needs all data in one place)",
    "real-long-all": "pooled real images, trained as long as autoshare in all",
    "syn-all": "shared synthetic images only",
    "syn-real": "shared synthetic images, then own images (autoshare)",
    "syn-union-real": "synthetic images of fewer sites, then own images",
    "fedavg": "FedAvg: weights are averaged every round",
    "fedprox": "FedProx: FedAvg with a pull towards the common model",
    "fedbn": "FedBN: FedAvg, normalisation stays at the site",
    "dsl": "DSL: masks and gradients are exchanged, training on its synthetic images",
    "other": "other models",
}
COMPARED = tuple(name for name in APPROACHES if name not in (FEWER, OTHER))  # each has one model for every site
UNION_FAMILY = re.compile(r"syn(?P<union>.+)-real")
UNION_NAME = re.compile(r"all|[0-9]+|\[.+\]")  # all sites, the first n, named ones


def is_deployable(approach: str) -> bool:
    """Whether sites that may not pool their images can use it."""
    return approach not in (POOLED, POOLED_LONG)


def approach_of(model: str, trained_on: str, sites: Collection[str]) -> str:
    """The key of ``APPROACHES`` for a model of ``results.csv``; ``sites`` tells a site called ``2`` from a union."""
    family = model.removesuffix(f"-{trained_on}")
    if UNION_FAMILY.fullmatch(family):
        return FEWER
    if family in (LOCAL, LOCAL_LONG):
        is_pooled = UNION_NAME.fullmatch(trained_on) and trained_on not in sites
        return f"{family}-all" if is_pooled else family
    if family == "syn":
        return "syn-all"
    return family if family in APPROACHES else OTHER


def model_order(model: str, trained_on: str, sites: Collection[str] = ()) -> tuple[object, ...]:
    """Sort key: by approach, then by union (smaller first, ``all`` last), then by site."""
    union = UNION_FAMILY.fullmatch(model.removesuffix(f"-{trained_on}"))
    rank = list(APPROACHES).index(approach_of(model, trained_on, sites))
    return (
        rank,
        *natural_order(union["union"] if union else ""),
        trained_on == ALL_SITES,
        *natural_order(trained_on),
        model,
    )


def natural_order(name: str) -> tuple[bool, int, str]:
    """Sort key of names: ``2`` before ``10`` before text."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


@dataclass(frozen=True)
class ScalingPoint:
    """Gain of fine-tuning from a union's synthetic images over own images alone, mean over sites.

    ``control``: the longer training on own images where it was evaluated, else the normal one.
    """

    union: str
    sites: tuple[str, ...]
    own_test: Interval  # each site's model on its own test images
    all_tests: Interval  # on the test images of all sites
    control: str = LOCAL

    @property
    def n_sites(self) -> int:
        """Contributing sites."""
        return len(self.sites)


def at_own_site(results: pd.DataFrame, families: Sequence[str]) -> pd.DataFrame:
    """Rows of the model that a site would use, on that site's test images; ``model`` becomes the family."""
    import pandas as pd

    parts = []
    for family in families:
        of_site = results["model"] == family + "-" + results["tested_on"].astype(str)
        for_all = results["model"].isin([family, f"{family}-all"]) & (results["trained_on"] == "all")
        chosen = results[of_site] if of_site.any() else results[for_all]
        parts.append(chosen.assign(model=family, trained_on=chosen["tested_on"]))
    return pd.concat(parts, ignore_index=True) if parts else results.iloc[:0]


def model_of_sites(family: str, sites: Sequence[str], models: Collection[str]) -> dict[str, str]:
    """Site -> the model of a family that it would use: its own, or the one for all; of those that were evaluated."""
    own = {site: f"{family}-{site}" for site in sites if f"{family}-{site}" in models}
    for_all = next((name for name in (family, f"{family}-{ALL_SITES}") if name in models), None)
    return own or (dict.fromkeys(sites, for_all) if for_all else {})


def is_named(union: str) -> bool:
    """Whether a union was chosen by its members (``[A+C]``), not as the first n sites or all of them."""
    return union.startswith("[")


def scaling_curve(results: pd.DataFrame, unions: Sequence[Mapping[str, Any]]) -> list[ScalingPoint]:
    """One point a union that was fine-tuned from, by the number of contributing sites.

    Args:
        unions: ``{"name": "2", "sites": ["A", "B"]}``, the union of all sites is called ``all``.
    """
    table, points = ScoreTable.of(results, "dice"), []
    own_sites = [site for site in table.sites if f"{LOCAL}-{site}" in table.models]
    control = LOCAL_LONG if any(f"{LOCAL_LONG}-{site}" in table.models for site in own_sites) else LOCAL
    controls = model_of_sites(control, own_sites, table.models)
    for union in unions:
        name, sites = str(union["name"]), tuple(map(str, union["sites"]))
        found = model_of_sites(OURS if name == ALL_SITES else f"syn{name}-real", own_sites, table.models)
        if not found or not controls:
            continue
        own_test = interval(table.difference(found, controls))
        all_tests = interval(table.mean_difference([(model, controls[site]) for site, model in found.items()]))
        points.append(ScalingPoint(name, sites, own_test, all_tests, control))
    return sorted(points, key=lambda point: (point.n_sites, is_named(point.union), point.union))
