"""Whether an attacker can tell the patients a generator was trained on from others.

Each figure comes with what the same attacks reach where there is nothing to find, between random parts of the members:
on small data that alone can look like an attack ("Membership inference or data split bias?").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from common.errors import InputError
from common.resampling import N_RESAMPLES, bootstrap_weights, percentile_interval, random_patients, relabelling_p
from common.roc import area_under_curve, levels_of, true_positive_rate
from common.seeds import derive_seed
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.membership_attacks import ATTACKS

N_CONTROLS = 200
Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class MembershipScores:
    """Scores of members and others (N,) by attack, members first."""

    by_attack: Mapping[str, np.ndarray]
    is_member: np.ndarray
    patients: tuple[str, ...]


def membership_scores(evidence: Evidence) -> MembershipScores:
    """Attack the training images and one half of the held-out patients; the other half is the attacker's reference.

    Raises:
        InputError: a single held-out patient is left for a half.
    """
    seed = derive_seed(evidence.seed, "membership", "reference")
    n_heldout = len(set(evidence.heldout_patients))
    if n_heldout < 4:
        raise InputError(
            f"{n_heldout} held-out patients are too few", where="leakage, membership", fix="hold out four or more"
        )
    is_reference = random_patients(evidence.heldout_patients, n_heldout // 2, 1, seed)[0]
    images = np.concatenate([evidence.train, evidence.heldout[~is_reference]])
    reference = evidence.heldout[is_reference]
    others = np.asarray(evidence.heldout_patients)[~is_reference]
    return MembershipScores(
        by_attack={attack.name: attack.score(images, evidence.generated, reference) for attack in ATTACKS},
        is_member=np.arange(len(images)) < len(evidence.train),
        patients=(*evidence.train_patients, *(str(name) for name in others)),
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
    member, seed = scores.is_member, derive_seed(seed, "membership")
    levels = [levels_of(values) for values in scores.by_attack.values()]

    def best_of(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """The best attack of each row of the weights (r, N); (r,)."""
        rows = zip(positive, negative, strict=True)
        return np.array([max(statistic(of_attack, *row) for of_attack in levels) for row in rows])

    patients = np.asarray(scores.patients)
    members, others = (patients[side].tolist() for side in (member, ~member))
    n_members, n_others = len(set(members)), len(set(others))
    value = float(best_of(member[None], ~member[None])[0])
    # the interval: patients of both sides are drawn with replacement
    drawn = np.zeros((2, N_RESAMPLES, len(member)))
    bootstrap = derive_seed(seed, "bootstrap")
    drawn[0][:, member] = bootstrap_weights(members, N_RESAMPLES, derive_seed(bootstrap, "members"))
    drawn[1][:, ~member] = bootstrap_weights(others, N_RESAMPLES, derive_seed(bootstrap, "others"))
    low, high = percentile_interval(best_of(drawn[0], drawn[1]), value)
    # the control: some members are called others
    called_others = np.zeros((N_CONTROLS, len(member)), bool)
    n_called = min(n_others, n_members // 2)
    called_others[:, member] = random_patients(members, n_called, N_CONTROLS, derive_seed(seed, "control"))
    control = best_of(member & ~called_others, called_others)
    # the test: any patients are called members
    labels = random_patients(scores.patients, n_members, N_RESAMPLES, derive_seed(seed, "labels"))
    return MetricResult(
        value=value,
        low=max(0.0, low),
        high=min(1.0, high),
        interval="bootstrap over patients",
        baseline=float(control.mean()),
        p=relabelling_p(value, best_of(labels, ~labels)),
        test="members and other patients are exchangeable to the generator, one-sided",
    )


def _excess(figure: MetricResult) -> MetricResult:
    """Over the control, whose mean over many draws has next to no error of its own."""
    value, low, high = (number - figure.baseline for number in (figure.value, figure.low, figure.high))
    return replace(figure, value=value, low=low, high=high, baseline=0.0)
