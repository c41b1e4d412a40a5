"""Whether an attacker can tell the patients a generator was trained on from others.

Each figure comes with what the same attacks reach where there is nothing to find, between random parts of the members:
on small data that alone can look like an attack ("Membership inference or data split bias?").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.bootstrap import percentile_interval
from common.errors import InputError
from common.resampling import (
    N_RESAMPLES,
    bootstrap_weights,
    random_patients,
    relabelling_p,
)
from common.roc import area_under_curve, levels_of, true_positive_rate
from common.seeds import derive_seed
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.membership_attacks import ATTACKS

N_CONTROLS = 200
LOGAN = "discriminator"  # Hayes et al. 2019: the discriminator's own logit
Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class MembershipScores:
    """Scores of members and others (N,) by attack, members first."""

    by_attack: Mapping[str, np.ndarray]
    is_member: np.ndarray
    patients: tuple[str, ...]


@dataclass(frozen=True)
class AttackResult:
    """One attack: area under the curve and TPR at 1 % FPR, each with its interval and its control's mean."""

    attack: str
    auc: MetricResult
    tpr: MetricResult


def membership_scores(evidence: Evidence) -> MembershipScores:
    """Attack the training images and one half of the held-out patients; the other half is the attacker's reference.

    Raises:
        InputError: a single held-out patient is left for a half.
    """
    seed = derive_seed(evidence.seed, "membership", "reference")
    n_heldout = len(set(evidence.heldout_patients))
    if n_heldout < 4:
        raise InputError(f"{n_heldout} held-out patients", where="leakage, membership", fix="hold out four or more")
    is_reference = random_patients(evidence.heldout_patients, n_heldout // 2, 1, seed)[0]
    images = np.concatenate([evidence.train, evidence.heldout[~is_reference]])
    scores = {
        attack.name: attack.score(images, evidence.generated, evidence.heldout[is_reference]) for attack in ATTACKS
    }
    if evidence.train_logits is not None and evidence.heldout_logits is not None:
        scores[LOGAN] = np.concatenate([evidence.train_logits, evidence.heldout_logits[~is_reference]])
    others = np.asarray(evidence.heldout_patients)[~is_reference]
    return MembershipScores(
        scores,
        np.arange(len(images)) < len(evidence.train),
        (*evidence.train_patients, *(str(name) for name in others)),
    )


def attack_results(evidence: Evidence) -> tuple[AttackResult, ...]:
    """Every attack on its own."""
    scores = membership_scores(evidence)
    alone = [
        (name, MembershipScores({name: of}, scores.is_member, scores.patients)) for name, of in scores.by_attack.items()
    ]
    return tuple(
        AttackResult(
            name,
            best_attack(one, area_under_curve, evidence.seed),
            best_attack(one, true_positive_rate, evidence.seed),
        )
        for name, one in alone
    )


def membership_figure(evidence: Evidence) -> MetricResult:
    """The best attack's AUC minus its control's."""
    return _excess(best_attack(membership_scores(evidence), area_under_curve, evidence.seed))


def true_positive_figure(evidence: Evidence) -> MetricResult:
    """The best attack's TPR at 1 % FPR minus its control's."""
    return _excess(best_attack(membership_scores(evidence), true_positive_rate, evidence.seed))


def best_attack(scores: MembershipScores, statistic: Statistic, seed: int) -> MetricResult:
    """The largest statistic over the attacks; the control (baseline), resamples and relabellings choose theirs anew.

    The baseline is the mean over random halves of the members' patients, one of them called others (as many patients
    as there are others, where those are fewer than a half: the best of several attacks, and a rate at 1 % of them,
    depend on that number). The interval resamples patients of both sides; p relabels patients.
    """
    member = scores.is_member
    levels = [levels_of(values) for values in scores.by_attack.values()]
    seed = derive_seed(seed, "membership")
    resampled = _best_of(levels, statistic, *_resamples(scores, derive_seed(seed, "bootstrap")))
    value = float(_best_of(levels, statistic, member[None], ~member[None])[0])
    called_others = _called_others(scores, derive_seed(seed, "control"))
    n_members = len(set(_names(scores, member)))
    labels = random_patients(scores.patients, n_members, N_RESAMPLES, derive_seed(seed, "labels"))
    low, high = percentile_interval(resampled, value)
    return MetricResult(
        value,
        max(0.0, low),
        min(1.0, high),
        interval="bootstrap over patients",
        baseline=float(_best_of(levels, statistic, member & ~called_others, called_others).mean()),
        p=relabelling_p(value, _best_of(levels, statistic, labels, ~labels)),
        test="members and other patients are exchangeable to the generator, one-sided",
    )


def _excess(figure: MetricResult) -> MetricResult:
    """Over the control, whose mean over many draws has next to no error of its own."""
    control = figure.baseline
    return MetricResult(
        figure.value - control, figure.low - control, figure.high - control, figure.interval, 0.0, figure.p, figure.test
    )


def _best_of(
    levels: Sequence[np.ndarray], statistic: Statistic, positive: np.ndarray, negative: np.ndarray
) -> np.ndarray:
    """The best attack of each row of the weights (r, N); (r,)."""
    rows = zip(positive, negative, strict=True)
    return np.array([max(statistic(of_attack, *row) for of_attack in levels) for row in rows])


def _resamples(scores: MembershipScores, seed: int) -> tuple[np.ndarray, np.ndarray]:
    weights = []
    for side, name in ((scores.is_member, "members"), (~scores.is_member, "others")):
        drawn = np.zeros((N_RESAMPLES, len(side)))
        drawn[:, side] = bootstrap_weights(_names(scores, side), N_RESAMPLES, derive_seed(seed, name))
        weights.append(drawn)
    return weights[0], weights[1]


def _called_others(scores: MembershipScores, seed: int) -> np.ndarray:
    """Members whom the control calls others; (N_CONTROLS, N) bool."""
    members, others = (_names(scores, side) for side in (scores.is_member, ~scores.is_member))
    n_called = min(len(set(others)), len(set(members)) // 2)
    called = np.zeros((N_CONTROLS, len(scores.patients)), bool)
    called[:, scores.is_member] = random_patients(members, n_called, N_CONTROLS, seed)
    return called


def _names(scores: MembershipScores, side: np.ndarray) -> list[str]:
    return [scores.patients[i] for i in np.flatnonzero(side)]
