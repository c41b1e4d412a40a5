"""What a site gets from each approach (own, pooled, synthetic, shared, federated images), and the scaling curve."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.statistics import Interval, PairedTest, bonferroni, gain, interval_of, paired_test

if TYPE_CHECKING:
    import pandas as pd

OURS = "syn-real"
LOCAL = "real"
POOLED = "real-all"
ALL_SITES = "all"
FEWER = "syn-union-real"
OTHER = "other"
APPROACHES = {  # in the tables' order; what stands under each in plain words
    "real": "own images only",
    "real-all": "pooled real images (upper bound, needs all data in one place)",
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
    return approach != POOLED


def approach_of(model: str, trained_on: str, sites: Collection[str]) -> str:
    """The key of ``APPROACHES`` for a model of ``results.csv``; ``sites`` tells a site called ``2`` from a union."""
    family = model.removesuffix(f"-{trained_on}")
    if UNION_FAMILY.fullmatch(family):
        return FEWER
    if family == LOCAL:
        return POOLED if UNION_NAME.fullmatch(trained_on) and trained_on not in sites else LOCAL
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
class Comparison:
    """One approach: its Dice at each site (own test images), its mean over sites, and ours minus it.

    ``mean`` is NaN where a site has no model of the approach: a mean over other sites would compare with nothing.
    """

    approach: str
    by_site: Mapping[str, Interval]
    mean: float
    difference: Interval | None  # ours minus this one, mean over sites; None for ours
    difference_by_site: Mapping[str, Interval]
    test: PairedTest | None
    p_corrected: float


@dataclass(frozen=True)
class ScalingPoint:
    """Gain of fine-tuning from a union's synthetic images over training on own images, mean over sites."""

    union: str
    sites: tuple[str, ...]
    own_test: Interval  # each site's model on its own test images
    all_tests: Interval  # on the test images of all sites

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


def compare(results: pd.DataFrame) -> list[Comparison]:
    """Every approach that was evaluated, in the order of ``APPROACHES``.

    Differences are paired: over folds (t), or over cases with one fold (bootstrap, the same cases for both). The test
    is one-sided over the pairs (fold, site); its p is corrected for the number of other approaches (Bonferroni).
    """
    own = at_own_site(results, COMPARED)
    present = [family for family in COMPARED if (own["model"] == family).any()]
    sites = sorted(own["tested_on"].unique())
    others = [family for family in present if family != OURS and OURS in present]
    named = own.assign(model=own["model"] + "-" + own["trained_on"].astype(str))
    tests = {family: paired_test(named, OURS, family) for family in others}
    corrected = dict(zip(others, bonferroni([test.p for test in tests.values()]), strict=True))
    ours_at = set(own[own["model"] == OURS]["tested_on"])
    found = []
    for family in present:
        of_site = {str(site): rows for site, rows in own[own["model"] == family].groupby("tested_on", sort=True)}
        by_site = {site: interval_of(rows, "dice") for site, rows in of_site.items()}
        shared = [site for site in by_site if family in tests and site in ours_at]
        comparison = Comparison(
            approach=family,
            by_site=by_site,
            mean=sum(of.mean for of in by_site.values()) / len(sites) if len(by_site) == len(sites) else math.nan,
            difference=gain(own, OURS, family, shared) if shared else None,
            difference_by_site={site: gain(own, OURS, family, [site]) for site in shared},
            test=tests.get(family),
            p_corrected=corrected.get(family, math.nan),
        )
        found.append(comparison)
    return found


def is_named(union: str) -> bool:
    """Whether a union was chosen by its members (``[A+C]``), not as the first n sites or all of them."""
    return union.startswith("[")


def scaling_curve(results: pd.DataFrame, unions: Sequence[Mapping[str, Any]]) -> list[ScalingPoint]:
    """One point a union that was fine-tuned from, by the number of contributing sites.

    Args:
        unions: ``{"name": "2", "sites": ["A", "B"]}``, the union of all sites is called ``all``.
    """
    points, tested = [], sorted(results["tested_on"].unique())
    for union in unions:
        name, sites = str(union["name"]), tuple(map(str, union["sites"]))
        family = OURS if name == ALL_SITES else f"syn{name}-real"
        own = at_own_site(results, [family, LOCAL])
        if not (own["model"] == family).any():
            continue
        everywhere = _mean_over_training_sites(results, [family, LOCAL])
        gains = (gain(table, family, LOCAL, tested) for table in (own, everywhere))
        points.append(ScalingPoint(name, sites, *gains))
    return sorted(points, key=lambda point: (point.n_sites, is_named(point.union), point.union))


def _mean_over_training_sites(results: pd.DataFrame, families: Sequence[str]) -> pd.DataFrame:
    """Each test case's score averaged over the sites' models of a family; pooled models are no site's."""
    import pandas as pd

    parts = []
    for family in families:
        chosen = results[results["model"] == family + "-" + results["trained_on"].astype(str)]
        chosen = chosen[chosen["trained_on"] != "all"]
        keys = ["tested_on", "fold", "case", "label"]
        mean = chosen.groupby(keys, sort=True)["dice"].mean().reset_index()
        parts.append(mean.assign(model=family, trained_on=""))
    return pd.concat(parts, ignore_index=True)
