"""What a report may say: what sharing gained each site, and each approach against autoshare, all judged together."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.approaches import COMPARED, LOCAL, LOCAL_LONG, LONGER, OURS, model_of_sites
from evaluation.statistics import Estimate, Interval, Judgement, ScoreTable, interval, judge

if TYPE_CHECKING:
    import pandas as pd


OWN_IMAGES, OTHER_IMAGES, UNSEEN_IMAGES = "own images", "other images", "unseen images"


@dataclass(frozen=True)
class SiteGain:
    """What a site's model gained from others' synthetic images, against its better control.

    ``control`` is the network that the site has without others, trained on its own images alone: the normal or the
    longer training, whichever has the better validation Dice. None where one of the two was not evaluated.
    """

    site: str
    control: str | None
    own_images: Judgement | None
    other_images: Judgement | None  # test images of the other sites that train, mean over sites; None: no other site
    unseen_images: Judgement | None  # images of sites that only test (``data.test_sites``); None: no such site


@dataclass(frozen=True)
class Comparison:
    """One approach: its Dice at each site (own test images), its mean over sites, and ours minus it.

    ``mean`` is NaN where a site has no model of the approach: a mean over other sites would compare with nothing.
    """

    approach: str
    by_site: Mapping[str, Interval]
    mean: float
    difference_by_site: Mapping[str, Interval]  # each by itself, not judged
    over_sites: Judgement | None  # ours minus this one, mean over sites; None: ours, or a longer training judges


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
    table = ScoreTable.of(results, "dice")
    models = models_of_approaches(table)
    controls = {site: better_control(table.models, site, networks) for site in models.get(OURS, {})}
    judged = judge_all(table, controls, networks)
    gains = (
        SiteGain(site, control, *(judged.get((what, site)) for what in (OWN_IMAGES, OTHER_IMAGES, UNSEEN_IMAGES)))
        for site, control in controls.items()
    )
    comparisons = (_comparison(table, approach, models, judged.get(("approach", approach))) for approach in models)
    return Verdicts(tuple(gains), tuple(comparisons), len(judged))


def judge_all(
    table: ScoreTable, controls: Mapping[str, str | None], networks: pd.DataFrame | None = None
) -> dict[tuple[str, str], Judgement]:
    """Every difference that a report judges: (what, site or approach) -> its judgement.

    At each site, autoshare's network minus its control, on own and on other sites' images; over all sites, autoshare
    minus each other approach, of two trainings on the same real images minus the longer one only.
    """
    models = models_of_approaches(table)
    ours = models.get(OURS, {})
    differences: dict[tuple[str, str], Estimate] = {}
    names: dict[tuple[str, str], set[str]] = {}
    for site, control in controls.items():
        if control is None:
            continue
        others = [other for other in ours if other != site]
        unseen = [other for other in table.sites if other not in models[OURS]]
        for what, tested in ((OWN_IMAGES, [site]), (OTHER_IMAGES, others), (UNSEEN_IMAGES, unseen)):
            if tested:
                pair = dict.fromkeys(tested, ours[site]), dict.fromkeys(tested, control)
                differences[what, site], names[what, site] = table.difference(*pair), {ours[site], control}
    for approach, of_site in models.items():
        shared = ours.keys() & of_site.keys()
        # a training of half the length is no baseline where there is one of the same length
        if approach != OURS and shared and LONGER.get(approach) not in models:
            differences["approach", approach] = table.difference(ours, of_site)
            names["approach", approach] = {model[site] for model in (ours, of_site) for site in shared}
    measured = {key: found for key, found in differences.items() if not math.isnan(found.mean)}
    return {key: judge(found, len(measured), withheld=_faults(networks, names[key])) for key, found in measured.items()}


def models_of_approaches(table: ScoreTable) -> dict[str, dict[str, str]]:
    """Approach -> the model that each site would use: its own, or the one for all; approaches that were evaluated.

    Sites without a network of their own, which are only tested on, are left out.
    """
    sites = [site for site in table.sites if {f"{family}-{site}" for family in COMPARED} & table.models]
    found = {family: model_of_sites(family, sites or table.sites, table.models) for family in COMPARED}
    return {family: models for family, models in found.items() if models}


def better_control(models: Collection[str], site: str, networks: pd.DataFrame | None) -> str | None:
    """The control of a site among ``models``; of two, the one with the better validation Dice, else the longer."""
    there = [name for name in (f"{LOCAL_LONG}-{site}", f"{LOCAL}-{site}") if name in models]
    if len(there) == 2 and networks is not None:
        scores = networks.groupby("model")["validation_dice"].mean().reindex(there)
        if scores.notna().all():
            return str(scores.idxmax())
    return there[0] if there else None


def _faults(networks: pd.DataFrame | None, models: Collection[str]) -> str:
    """Why there is no verdict: the first fault of these models' trainings."""
    if networks is None:
        return ""
    faulty = networks[networks["model"].isin(list(models)) & (networks["fault"] != "")]
    if faulty.empty:
        return ""
    first = faulty.iloc[0]
    return f"no verdict, as the training of {first['model']} (fold {first['fold']}) {first['fault']}"


def _comparison(
    table: ScoreTable, approach: str, models: Mapping[str, Mapping[str, str]], over_sites: Judgement | None
) -> Comparison:
    of_site, ours = models[approach], models.get(OURS, {})
    by_site = {
        site: table.mean(model, site, "dice") for site, model in of_site.items() if (model, site) in table.scores
    }
    all_sites = {site for found in models.values() for site in found}
    compared = [site for site in by_site if approach != OURS and site in ours]
    apart = {site: interval(table.difference({site: ours[site]}, of_site)) for site in compared}
    return Comparison(
        approach=approach,
        by_site=by_site,
        mean=sum(found.mean for found in by_site.values()) / len(by_site) if by_site.keys() == all_sites else math.nan,
        difference_by_site=apart,
        over_sites=over_sites,
    )
