"""What a report may say: what sharing gained each site, and each approach against autoshare, all judged together."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.approaches import COMPARED, LOCAL, LOCAL_LONG, OURS, at_own_site
from evaluation.statistics import Estimate, Interval, Judgement, difference, interval, judge, mean_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SiteGain:
    """What a site's model gained from others' synthetic images, against its better control.

    ``control`` is the network that the site has without others, trained on its own images alone: the normal or the
    longer training, whichever has the better validation Dice. None where one of the two was not evaluated.
    """

    site: str
    control: str | None
    own_images: Judgement | None
    other_images: Judgement | None  # test images of the other sites, mean over sites; None where there is no other


@dataclass(frozen=True)
class Comparison:
    """One approach: its Dice at each site (own test images), its mean over sites, and ours minus it.

    ``mean`` is NaN where a site has no model of the approach: a mean over other sites would compare with nothing.
    """

    approach: str
    by_site: Mapping[str, Interval]
    mean: float
    difference_by_site: Mapping[str, Interval]  # each by itself, not judged
    over_sites: Judgement | None  # ours minus this one, mean over sites; None for ours


@dataclass(frozen=True)
class Verdicts:
    """All that a report judges; ``n_comparisons`` is what every interval and p is corrected for."""

    gains: tuple[SiteGain, ...]
    comparisons: tuple[Comparison, ...]
    n_comparisons: int


def judge_report(results: pd.DataFrame, networks: pd.DataFrame | None = None) -> Verdicts:
    """Every verdict of a report, corrected for the number of all of them.

    Args:
        results: as ``read_results`` gives them.
        networks: as ``read_networks`` gives them: validation Dice and faults of each training. A verdict that rests
            on a training with a fault is withheld.
    """
    own = at_own_site(results, COMPARED)
    sites = sorted(map(str, own["tested_on"].unique()))
    trained = [site for site in sites if f"{OURS}-{site}" in set(results["model"])]
    controls = {site: better_control(results, site, networks) for site in trained}
    own_models = {family: _models_at_own_site(results, family, sites) for family in COMPARED}
    present = [family for family in COMPARED if own_models[family]]

    # first the differences, then their number, then the verdicts
    differences: dict[tuple[str, str], tuple[Estimate, str]] = {}
    for site, control in controls.items():
        if control is None:
            continue
        ours, withheld = f"{OURS}-{site}", _faults(networks, [f"{OURS}-{site}", control])
        differences[site, "own"] = difference(results, ours, control, [site]), withheld
        others = [other for other in sites if other != site]
        if others:
            differences[site, "others"] = difference(results, ours, control, others), withheld
    for family in present:
        shared = [site for site in own_models[family] if site in own_models[OURS]]
        if family != OURS and shared:
            models = [own_models[name][site] for name in (family, OURS) for site in shared]
            differences["approach", family] = difference(own, OURS, family, shared), _faults(networks, models)
    judged = {key: judge(found, len(differences), withheld=withheld) for key, (found, withheld) in differences.items()}

    gains = (
        SiteGain(site, controls[site], judged.get((site, "own")), judged.get((site, "others"))) for site in trained
    )
    comparisons = (_comparison(own, family, sites, over_sites=judged.get(("approach", family))) for family in present)
    return Verdicts(tuple(gains), tuple(comparisons), len(differences))


def better_control(results: pd.DataFrame, site: str, networks: pd.DataFrame | None) -> str | None:
    """The control of a site that was evaluated; of two, the one with the better validation Dice, else the longer."""
    evaluated = set(results["model"])
    there = [name for name in (f"{LOCAL_LONG}-{site}", f"{LOCAL}-{site}") if name in evaluated]
    if len(there) == 2 and networks is not None:
        scores = networks.groupby("model")["validation_dice"].mean().reindex(there)
        if scores.notna().all():
            return str(scores.idxmax())
    return there[0] if there else None


def _models_at_own_site(results: pd.DataFrame, family: str, sites: Sequence[str]) -> dict[str, str]:
    """The model of a family that each site would use: its own, or the one for all."""
    evaluated = set(results["model"])
    own = {site: f"{family}-{site}" for site in sites if f"{family}-{site}" in evaluated}
    for_all = next((name for name in (family, f"{family}-all") if name in evaluated), None)
    return own or (dict.fromkeys(sites, for_all) if for_all else {})


def _faults(networks: pd.DataFrame | None, models: Collection[str]) -> str:
    """Why there is no verdict: the first fault of these models' trainings."""
    if networks is None:
        return ""
    faulty = networks[networks["model"].isin(list(models)) & (networks["fault"] != "")]
    if faulty.empty:
        return ""
    first = faulty.iloc[0]
    return f"no verdict, as the training of {first['model']} (fold {first['fold']}) {first['fault']}"


def _comparison(own: pd.DataFrame, family: str, sites: Sequence[str], *, over_sites: Judgement | None) -> Comparison:
    rows = own[own["model"] == family]
    by_site = {str(site): mean_interval(found, "dice") for site, found in rows.groupby("tested_on", sort=True)}
    ours_at = set() if over_sites is None else set(own[own["model"] == OURS]["tested_on"])
    apart = {site: interval(difference(own, OURS, family, [site])) for site in by_site if site in ours_at}
    return Comparison(
        approach=family,
        by_site=by_site,
        mean=sum(found.mean for found in by_site.values()) / len(sites) if len(by_site) == len(sites) else math.nan,
        difference_by_site=apart,
        over_sites=over_sites,
    )
