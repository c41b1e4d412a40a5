"""What a site gets from each approach: local, pooled, synthetic, shared and fine-tuned, federated, DSL; and scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.statistics import Interval, PairedTest, bonferroni, gain, interval_of, paired_test

if TYPE_CHECKING:
    import pandas as pd

OURS = "syn-real"
LOCAL = "real"
APPROACHES = {  # family of models -> what it is, in plain words; a family has one model a site, or one called -all
    "real": "own images only",
    "real-all": "all sites' real images in one place (upper bound, no deployment has it)",
    "syn-all": "shared synthetic images only",
    "syn-real": "shared synthetic images, then own images (autoshare)",
    "fedavg": "FedAvg: weights are averaged every round",
    "fedprox": "FedProx: FedAvg with a pull towards the common model",
    "fedbn": "FedBN: FedAvg, normalisation stays at the site",
    "dsl": "DSL: masks and gradients are exchanged, training on its synthetic images",
}


@dataclass(frozen=True)
class Comparison:
    """One approach: its Dice at each site (own test images), its mean over sites, and ours minus it."""

    approach: str
    by_site: Mapping[str, Interval]
    mean: float
    difference: Interval | None  # ours minus this one, mean over sites; None for ours
    test: PairedTest | None
    p_corrected: float


@dataclass(frozen=True)
class ScalingPoint:
    """Gain of fine-tuning from a union's synthetic images over training on own images, mean over sites."""

    union: str
    n_sites: int
    own_test: Interval  # each site's model on its own test images
    all_tests: Interval  # on the test images of all sites


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
    """Every approach that was evaluated, in the order of ``APPROACHES``."""
    own = at_own_site(results, list(APPROACHES))
    present = [family for family in APPROACHES if (own["model"] == family).any()]
    sites = sorted(own["tested_on"].unique())
    others = [family for family in present if family != OURS and OURS in present]
    named = own.assign(model=own["model"] + "-" + own["trained_on"].astype(str))
    tests = {family: paired_test(named, OURS, family) for family in others}
    corrected = dict(zip(others, bonferroni([test.p for test in tests.values()]), strict=True))
    found = []
    for family in present:
        rows = own[own["model"] == family]
        by_site = {site: interval_of(rows[rows["tested_on"] == site], "dice") for site in sites if _any(rows, site)}
        mean = sum(interval.mean for interval in by_site.values()) / len(by_site)
        difference = gain(own, OURS, family, sites) if family in tests else None
        found.append(
            Comparison(family, by_site, mean, difference, tests.get(family), corrected.get(family, float("nan")))
        )
    return found


def _any(rows: pd.DataFrame, site: str) -> bool:
    return bool((rows["tested_on"] == site).any())


def scaling_curve(results: pd.DataFrame, unions: Sequence[Mapping[str, object]]) -> list[ScalingPoint]:
    """One point a union, by the number of contributing sites.

    Args:
        unions: ``{"name": "2", "sites": ["A", "B"]}``, the union of all sites is called ``all``.
    """
    points = []
    for union in unions:
        name, sites = str(union["name"]), union["sites"]
        assert isinstance(sites, Sequence)
        family = OURS if name == "all" else f"syn{name}-real"
        own = at_own_site(results, [family, LOCAL])
        if not (own["model"] == family).any():
            continue
        everywhere = _mean_over_training_sites(results, [family, LOCAL])
        tested = sorted(results["tested_on"].unique())
        points.append(
            ScalingPoint(name, len(sites), gain(own, family, LOCAL, tested), gain(everywhere, family, LOCAL, tested))
        )
    return sorted(points, key=lambda point: (point.n_sites, point.union))


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
