"""What a filter finds of planted copies: recall by kind, and the share of honest images that it drops.

*Honest* images are real images that are no copies. Patients are split once: the index holds some; the images of the
others are honest images that the filter has never seen. The filter is calibrated inside the index, each image against
those of other patients, as it is in use. Copies are made of images of the index. Thresholds for the recall at a
false-drop rate are set on the honest images, so that the rate is measured.

A scorer that learns (``Learner``) is trained on the images of ``SHARE_LEARNED`` of the indexed patients. These stay
references, and copies are made of them too, but only the other indexed patients' images calibrate it: a trained
descriptor knows its own training images, but neither those nor an honest image. A scorer that it is fused with is
calibrated on the same images; all other scorers keep all indexed images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from common.errors import InputError
from common.progress import Progress, silent
from common.resampling import clopper_pearson
from common.seeds import derive_seed
from features.embedders import Embedder
from memorization.calibration import MemorizationConfig, calibrate, drawn
from memorization.copy_score import Learner, Likeness, Scorer, embedding_scorer, joined
from memorization.filter import attainable_level, fused_scores, p_values
from memorization.planted.copies import KINDS, Condition, Kind, plant

FUSED, FUSED_WITH = "fused", "fused with "
Decision = Callable[[np.ndarray], np.ndarray]
"""From statistics (m, s) to what is dropped (m,)."""
Rule = Callable[[np.ndarray], Decision]
"""From the calibration images used, as positions, to the decision calibrated on them."""
RATES = (0.05, 0.01)
SHARE_INDEXED = 0.6  # of the patients
SHARE_LEARNED = 0.5  # of the indexed patients, where a scorer learns
N_RECALIBRATIONS = 5  # for the consistency: the calibration on other parts of the patients
SHARE_RECALIBRATED = 0.8


@dataclass(frozen=True)
class Recall:
    """``found`` of ``n`` copies, with its 95 % Clopper-Pearson interval."""

    n: int
    found: int
    interval: tuple[float, float]

    @property
    def value(self) -> float:
        """The share found."""
        return self.found / self.n


@dataclass(frozen=True)
class FilterAudit:
    """One filter: what it does at its own level, and at false-drop rates measured on the honest images."""

    name: str
    level: float
    false_drops: Recall  # at its own level, of the honest images
    recall: Mapping[Condition, Recall]  # at its own level
    recall_at: Mapping[float, Mapping[Condition, Recall]]  # by measured false-drop rate
    auc: Mapping[Condition, float]
    consistency: float  # Cohen's kappa of its decisions between calibrations, the mean over pairs

    def by_kind(self, rate: float | None = None) -> dict[str, float]:
        """Mean recall over the strengths of each kind, at the level or at a measured rate."""
        recall = self.recall if rate is None else self.recall_at[rate]
        kinds: dict[str, list[float]] = {}
        for condition, measured in recall.items():
            kinds.setdefault(condition.kind, []).append(measured.value)
        return {kind: float(np.mean(values)) for kind, values in kinds.items()}


@dataclass(frozen=True, eq=False)
class Compared:
    """Likeness of calibration images, honest images and the copies of every condition, by one set of scorers."""

    calibration: Likeness
    calibration_patients: np.ndarray
    honest: Likeness
    copies: Mapping[Condition, Likeness]
    calibrates: np.ndarray  # (n, statistics) whether the calibration image may calibrate the statistic

    def columns(self, wanted: Sequence[int]) -> Compared:
        """The same by some of the statistics, and by the images that may calibrate all of these."""
        rows = self.calibrates[:, wanted].all(axis=1)

        def part(likeness: Likeness) -> Likeness:
            return Likeness(likeness.values[:, wanted], likeness.nearest[:, wanted])

        of_rows = Likeness(self.calibration.values[rows], self.calibration.nearest[rows])
        copies = {condition: part(likeness) for condition, likeness in self.copies.items()}
        calibrates = self.calibrates[rows][:, wanted]
        return Compared(part(of_rows), self.calibration_patients[rows], part(self.honest), copies, calibrates)


def audit_scorers(
    images: np.ndarray,
    patients: Sequence[str],
    scorers: Sequence[Scorer],
    level: float,
    n_copies: int,
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    progress: Progress = silent,
    learners: Sequence[Learner] = (),
) -> list[FilterAudit]:
    """Audit every scorer and learner alone, fused with the learners, and last the scorers fused, as the filter does.

    Args:
        images: (n, channels, height, width) of one site; ``patients``: one name each.
        n_copies: per kind and strength.

    Raises:
        InputError: too few patients for both sides of the split.
    """
    compared = compare(images, patients, scorers, n_copies, seed, kinds, progress, learners)
    every: list[Scorer | Learner] = [*scorers, *learners]
    ends = np.cumsum([len(scorer.statistics) for scorer in every])
    parts = {
        scorer.name: list(range(end - len(scorer.statistics), end)) for scorer, end in zip(every, ends, strict=True)
    }
    if scorers and learners:
        parts[FUSED_WITH + ", ".join(learner.name for learner in learners)] = list(range(ends[-1]))
    if len(scorers) > 1:
        parts[FUSED] = list(range(ends[len(scorers) - 1]))
    return [judge_fused(name, compared.columns(columns), level, seed) for name, columns in parts.items()]


def audit_paper_rule(
    images: np.ndarray, patients: Sequence[str], embedder: Embedder, n_copies: int, seed: int
) -> FilterAudit:
    """Audit the rule of the paper with this embedder on the same split and the same copies."""
    scorer = embedding_scorer(embedder, mirrored=False)
    compared = compare(images, patients, [scorer], n_copies, seed)
    references = images[_indexed(np.asarray(patients), seed)]
    features = embedder.embed(references[drawn(np.arange(len(references)))])
    paper = MemorizationConfig(rule="percentile", calibration="paper_half", drop_ties=False, mirror="never")

    def rule(positions: np.ndarray) -> Decision:
        owners = [str(name) for name in compared.calibration_patients[positions]]
        threshold = calibrate(features[positions], owners, len(positions), paper, seed).threshold_l2
        return lambda values: np.exp(-values[:, 0]) < threshold

    return judge(f"paper's rule, {embedder.name}", compared, rule, paper.percentile / 100, seed)


def compare(
    images: np.ndarray,
    patients: Sequence[str],
    scorers: Sequence[Scorer],
    n_copies: int,
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    progress: Progress = silent,
    learners: Sequence[Learner] = (),
) -> Compared:
    """Split, train the learners, index, plant and compare; the learners' statistics come after the scorers'."""
    owners = np.asarray(patients)
    indexed = _indexed(owners, seed)
    references, honest = images[indexed], images[~indexed]
    learned = _learned_from(owners[indexed], seed)
    trained = [learner.train(references[learned], derive_seed(seed, learner.name), progress) for learner in learners]
    made = [scorer.index(references) for scorer in (*scorers, *trained)]
    calibrating, judged = drawn(np.arange(len(references))), drawn(np.arange(len(honest)))
    same_patient = owners[indexed][calibrating][:, None] == owners[indexed][None]
    calibration = joined([index.compare(references[calibrating], same_patient) for index in made])
    of_honest = joined([index.compare(honest[judged]) for index in made])
    conditions = [
        (kind, Condition(kind.name, kind.group, strength, kind.unit)) for kind in kinds for strength in kind.strengths
    ]
    copies: dict[Condition, Likeness] = {}
    for number, (kind, condition) in enumerate(conditions):
        rng = np.random.default_rng(derive_seed(seed, "planted", kind.name, condition.strength))
        originals = rng.permutation(len(references))[:n_copies]
        beside = rng.integers(0, len(honest), len(originals))
        planted = plant(kind, condition.strength, references[originals], honest[beside], derive_seed(seed, kind.name))
        copies[condition] = joined([index.compare(planted) for index in made])
        progress(number + 1, len(conditions), "condition")
    n_fixed, n_learned = (sum(len(one.statistics) for one in ones) for ones in (scorers, learners))
    may = learned[calibrating]
    calibrates = np.repeat([np.ones(len(may), bool), ~may], (n_fixed, n_learned), axis=0).T
    return Compared(calibration, owners[indexed][calibrating], of_honest, copies, calibrates)


def fused_rule(calibration: np.ndarray, level: float) -> Rule:
    """The fused rule by rows of ``calibration`` (n, s), at the level that so many rows allow."""

    def rule(positions: np.ndarray) -> Decision:
        used = attainable_level(level, len(positions))
        return lambda values: p_values(calibration[positions], values) <= used

    return rule


def judge_fused(name: str, compared: Compared, level: float, seed: int) -> FilterAudit:
    """The fused rule on these statistics."""
    calibration = compared.calibration.values
    return judge(name, compared, fused_rule(calibration, level), attainable_level(level, len(calibration)), seed)


def judge(name: str, compared: Compared, rule: Rule, level: float, seed: int) -> FilterAudit:
    """From likeness to figures."""
    calibration = compared.calibration.values
    decide = rule(np.arange(len(calibration)))
    queries = np.concatenate([compared.honest.values, *(copies.values for copies in compared.copies.values())])
    honest = fused_scores(calibration, compared.honest.values)
    scores = {key: fused_scores(calibration, copies.values) for key, copies in compared.copies.items()}
    # scores above which at most a share ``rate`` of the honest images lie
    thresholds = {rate: np.sort(honest)[::-1][int(rate * len(honest) + 1e-9)] for rate in RATES}
    return FilterAudit(
        name=name,
        level=level,
        false_drops=recall_of(decide(compared.honest.values)),
        recall={key: recall_of(decide(copies.values)) for key, copies in compared.copies.items()},
        recall_at={
            rate: {key: recall_of(score > threshold) for key, score in scores.items()}
            for rate, threshold in thresholds.items()
        },
        # P(a copy's score is above an honest image's), ties counting half
        auc={
            key: float((score[:, None] > honest).mean() + 0.5 * (score[:, None] == honest).mean())
            for key, score in scores.items()
        },
        consistency=mean_kappa(recalibrated(compared.calibration_patients, queries, rule, seed)),
    )


def recall_of(found: np.ndarray) -> Recall:
    """Of a boolean array."""
    n_found = int(found.sum())
    return Recall(len(found), n_found, clopper_pearson(n_found, len(found)))


def _indexed(owners: np.ndarray, seed: int) -> np.ndarray:
    """(n,) True for images of the patients that go into the index."""
    names = np.unique(owners)
    if len(names) < 5:
        raise InputError(
            f"{len(names)} patients cannot be split into an index and honest images",
            where="memorization.audit",
            fix="give the audit images of 5 patients or more; name the patients if it takes each image for one",
        )
    np.random.default_rng(derive_seed(seed, "audit split")).shuffle(names)
    return np.isin(owners, names[: round(SHARE_INDEXED * len(names))])


def _learned_from(owners: np.ndarray, seed: int) -> np.ndarray:
    """(n,) True for images of the indexed patients that the learners are trained on."""
    names = np.unique(owners)
    np.random.default_rng(derive_seed(seed, "learned from")).shuffle(names)
    return np.isin(owners, names[: max(1, int(SHARE_LEARNED * len(names)))])


def recalibrated(calibration_patients: np.ndarray, queries: np.ndarray, rule: Rule, seed: int) -> np.ndarray:
    """(calibrations, m) decisions on the statistics ``queries`` (m, s), each after another part of the patients."""
    names = np.unique(calibration_patients)
    rng = np.random.default_rng(derive_seed(seed, "recalibration"))
    decisions = []
    for _ in range(N_RECALIBRATIONS):
        kept = rng.choice(names, max(2, round(SHARE_RECALIBRATED * len(names))), replace=False)
        decisions.append(rule(np.flatnonzero(np.isin(calibration_patients, kept)))(queries))
    return np.stack(decisions)


def mean_kappa(decisions: np.ndarray) -> float:
    """Cohen's kappa between rows of decisions (r, m), the mean over pairs of them."""
    from sklearn.metrics import cohen_kappa_score

    pairs = combinations(decisions, 2)
    return float(np.mean([1.0 if (a == b).all() else cohen_kappa_score(a, b) for a, b in pairs]))
