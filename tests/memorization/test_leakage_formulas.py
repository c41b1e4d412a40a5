"""Each measure of leakage: by hand, against a loop, and against the published package where one runs here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.resampling import clopper_pearson, equal_subsamples
from common.roc import area_under_curve, levels_of, true_positive_rate
from memorization.leakage.adversarial_accuracy import adversarial_accuracy
from memorization.leakage.authenticity import authentic, authenticity_figure
from memorization.leakage.closest_records import closest_record_figure
from memorization.leakage.copying import copying_figure, usable_cells
from memorization.leakage.evidence import Evidence
from memorization.leakage.exposure import PatientExposure, exposure_figure, exposures, summarise_exposure
from memorization.leakage.generalization import frechet_gap_figure
from memorization.leakage.likelihood import fit_log_variances, likelihood_gap_figure, negative_log_likelihoods
from memorization.leakage.membership_attacks import (
    calibrated,
    density_ratio,
    full_black_box,
    monte_carlo,
    nearest_mean,
    neighbour_density_ratio,
)


def evidence_of(
    train: Sequence, heldout: Sequence, generated: Sequence, images_per_patient: int = 1, **more: object
) -> Evidence:
    sides = {"train": train, "heldout": heldout}
    owners = {
        f"{side}_patients": [f"{side}{i // images_per_patient:03d}" for i in range(len(x))] for side, x in sides.items()
    }
    arrays = {side: np.asarray(x, float) for side, x in {**sides, "generated": generated}.items()}
    return Evidence(**arrays, **owners, **more)


def exposure_of(evidence: Evidence) -> tuple[PatientExposure, ...]:
    return exposures(evidence.train, evidence.train_patients, evidence.generated)


def line(*positions: float) -> np.ndarray:
    return np.array(positions, float)[:, None]


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None] - b[None], axis=2)


def three_clusters() -> Evidence:
    """What the published packages were run on; 40 of 120 generated images are near-copies."""
    rng = np.random.default_rng(7)
    centres = 4 * np.eye(3, 80)
    train, heldout, generated = (centres[np.arange(n) % 3] + rng.normal(size=(n, 80)) / 4 for n in (90, 60, 120))
    generated[:40] = train[:40] + rng.normal(size=(40, 80)) / 40
    return evidence_of(train, heldout, generated)


def test_exposure_counts_the_generated_images_of_each_patient():
    evidence = evidence_of(line(0, 1, 5, 9), line(20, 30, 40), line(0.1, 0.9, 1.2, 5.5, 2), images_per_patient=2)
    of_patients = exposure_of(evidence)
    assert [(e.patient, e.n_images, e.n_nearest) for e in of_patients] == [("train000", 2, 4), ("train001", 2, 1)]
    np.testing.assert_allclose([e.smallest_distance_l2 for e in of_patients], [0.01, 0.25], atol=1e-6)
    summary = summarise_exposure(of_patients)
    assert (summary.n_patients, summary.n_exposed, summary.largest_share) == (2, 2, 0.8)
    assert summary.n_nearest == (1, 1.75, 2.5, 3.25, 4)
    assert exposure_figure(evidence).value == 0.8 and exposure_figure(evidence).baseline == 0.5


def test_what_may_leave_of_the_exposure_holds_no_name():
    summary = summarise_exposure(exposure_of(three_clusters()))
    assert "train" not in repr(summary)


def test_closest_record_share_counts_ties_half():
    """Nearer to training, nearer to held-out, a tie, nearer to training: 2.5 of 4."""
    result = closest_record_figure(evidence_of(line(0, 10), line(4, 20), line(1, 5, 2, 11)))
    assert result.value == 0.625


def test_clopper_pearson_is_scipys():
    for count, n in ((0, 7), (3, 7), (7, 7), (181, 200)):
        expected = stats.binomtest(count, n).proportion_ci(method="exact")
        np.testing.assert_allclose(clopper_pearson(count, n), (expected.low, expected.high), atol=1e-12)


def test_authenticity_by_hand():
    """The training images 0 and 1 have their nearest other at 1, the image 5 has it at 4."""
    assert authentic(line(0, 1, 5), line(0.4, 2.5, -1.1, 7, 9.5)).tolist() == [False, True, True, False, True]


def test_adversarial_accuracy_of_separate_interleaved_and_equal_sets():
    assert adversarial_accuracy(line(0, 1), line(10, 11)) == 1
    assert adversarial_accuracy(line(0, 10), line(1, 11)) == 0
    assert adversarial_accuracy(line(0, 2), line(2, 4)) == 0.25  # at 2 each has an equal; 0 and 4 are at ties


def test_the_subsample_is_as_large_as_the_other_set_and_made_of_whole_patients_but_one():
    patients = np.repeat([f"p{i}" for i in range(10)], 3)
    pairs = equal_subsamples(patients, [str(i) for i in range(10)], 5, seed=1)
    assert len(pairs) == 5 and len({tuple(a) for a, _ in pairs}) > 1
    for a, b in pairs:
        assert len(a) == len(b) == 10
        assert sorted(np.unique(patients[a], return_counts=True)[1]) == [1, 3, 3, 3]


def test_area_and_rate_are_those_of_scipy_and_of_a_loop():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 40, 450) / 7
    positive = rng.random(450) < 0.4
    weights = rng.integers(0, 3, 450)
    u = stats.mannwhitneyu(np.repeat(scores, weights * positive), np.repeat(scores, weights * ~positive)).statistic
    n_pairs = (weights * positive).sum() * (weights * ~positive).sum()
    levels = levels_of(scores)
    assert area_under_curve(levels, weights * positive, weights * ~positive) == pytest.approx(u / n_pairs, abs=1e-9)
    allowed = [t for t in np.append(scores, 99) if (scores[~positive] >= t).mean() <= 0.01]
    expected = max((scores[positive] >= t).mean() for t in allowed)
    assert true_positive_rate(levels, positive, ~positive) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(4, 30), st.integers(1, 12))
def test_every_nearest_neighbour_figure_is_that_of_a_loop(seed, n, m, dimension):
    rng = np.random.default_rng(seed)
    train, heldout, generated = (rng.normal(size=(k, dimension)) / np.sqrt(dimension) for k in (n, n, m))
    to_train, to_heldout = distances(generated, train), distances(generated, heldout)
    result = closest_record_figure(evidence_of(train, heldout, generated))
    assert result.value == pytest.approx((to_train.min(axis=1) < to_heldout.min(axis=1)).mean(), abs=1e-6)

    within = distances(train, train) + np.diag(np.full(n, np.inf))
    closest = to_train.argmin(axis=1)
    expected = to_train.min(axis=1) > within[closest].min(axis=1)
    assert authentic(train, generated).tolist() == expected.tolist()

    within_generated = distances(generated, generated) + np.diag(np.full(m, np.inf))
    of_train = (to_train.min(axis=0) > within.min(axis=1)).mean()
    of_generated = (to_train.min(axis=1) > within_generated.min(axis=1)).mean()
    assert adversarial_accuracy(train, generated) == pytest.approx((of_train + of_generated) / 2, abs=1e-6)


def test_every_attack_is_its_formula_in_a_loop():
    rng = np.random.default_rng(5)
    images, generated, reference = (rng.normal(size=(n, 12)) / 4 for n in (30, 40, 25))
    to_generated, to_reference = (np.sort(distances(images, side), axis=1) for side in (generated, reference))
    eps = np.median(to_generated[:, 0])
    for score, expected in (
        (full_black_box, -to_generated[:, 0]),
        (calibrated, to_reference[:, 0] - to_generated[:, 0]),
        (monte_carlo, (to_generated <= eps).mean(axis=1)),
        (neighbour_density_ratio, np.log(to_reference[:, 4] / to_generated[:, 4])),
        (nearest_mean, -to_generated[:, :5].mean(axis=1)),
    ):
        np.testing.assert_allclose(score(images, generated, reference), expected, atol=1e-6)


def test_the_density_ratio_is_a_sum_of_kernels_on_features_that_are_white_already():
    """Both halves together have mean 0 and covariance 1, so that the components are a rotation."""
    rng = np.random.default_rng(5)
    generated = rng.normal(size=(60, 3))
    scores = density_ratio(generated[:10], generated, generated)
    np.testing.assert_allclose(scores, 0, atol=1e-9)
    spread = generated - generated.mean(axis=0)
    white = np.concatenate([spread, -spread])
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T))).T
    half = len(white) // 2
    ratio = density_ratio(white[:10], white[:half], white[half:])
    width = half ** (-1 / 7)
    kernel = [
        np.exp(-np.square(distances(white[:10], side)) / (2 * width**2)).sum(axis=1)
        for side in (white[:half], white[half:])
    ]
    np.testing.assert_allclose(ratio, np.log(kernel[0] / kernel[1]), atol=1e-6)


def test_likelihood_under_one_and_two_gaussians():
    centres, log_variances = np.zeros((1, 2)), np.log([4.0])
    expected = -stats.multivariate_normal([0, 0], 4).logpdf([[1, 2], [3, 0]])
    np.testing.assert_allclose(
        negative_log_likelihoods(np.array([[1, 2], [3, 0]]), centres, log_variances), expected, atol=1e-9
    )
    two = negative_log_likelihoods(line(0.5), line(0, 3), np.log([1.0, 0.25]))
    density = (stats.norm.pdf(0.5) + stats.norm.pdf(0.5, 3, 0.5)) / 2
    np.testing.assert_allclose(two, -np.log(density), atol=1e-9)


def test_the_variance_at_a_copy_collapses_and_no_other():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(50, 6))
    generated = np.concatenate([train[:1], rng.normal(size=(9, 6))])
    log_variances = fit_log_variances(generated, train)
    assert log_variances[0] < -8 and (log_variances[1:] > -4).all()


def test_frechet_gap_of_shifted_sets_is_the_difference_of_squared_shifts():
    shape = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    evidence = evidence_of(shape + 1, shape + 3, shape)
    assert frechet_gap_figure(evidence).value == pytest.approx(2 * 9 - 2 * 1, abs=1e-6)


def test_cells_without_enough_generated_images_have_no_say():
    """Two cells count; in the third, of which 20 images are exact copies, too few were generated."""
    rng = np.random.default_rng(2)
    centres = np.array([[0, 0], [9, 0], [0, 9]])
    train, heldout = (np.repeat(centres, 30, axis=0) + rng.normal(size=(90, 2)) for _ in range(2))
    honest = np.repeat(centres[:2], 40, axis=0) + rng.normal(size=(80, 2))
    evidence = evidence_of(train, heldout, np.concatenate([honest, train[60:80]]))
    assert len(usable_cells(evidence)) == 2 and abs(copying_figure(evidence).value) < 3


def test_c_t_authpct_and_fld_are_the_published_ones():
    """``rng``, ``train``, ``heldout`` and ``generated`` as in ``three_clusters``, then

    dgm_eval/metrics/ct.py and authpct.py of layer6ai-labs/dgm-eval d57a6d2 (scikit-learn 1.9.1, torch 2.11):

        compute_CTscore(train, heldout, generated)              # -2.6370637442536027
        compute_authpct(train, generated)                       # 44.16666793823242 (single precision)

    fld/MoG.py of marcojira/fld 245ac7c with torch.set_default_dtype(torch.float64), features standardised on train:

        n = lambda x: torch.tensor((x - train.mean(0)) / train.std(0, ddof=1))
        mog = MoG(n(generated)); mog.fit(n(train))
        nlls = [mog.get_dim_adjusted_nlls(n(x)).mean().item() for x in (train, heldout)]
        100 * (nlls[0] - nlls[1])                               # -112.42135485955893
    """
    evidence = three_clusters()
    assert copying_figure(evidence).value == pytest.approx(-2.6370637442536027, abs=1e-6)
    shares = [100 * authentic(evidence.train, side).mean() for side in (evidence.generated, evidence.heldout)]
    assert shares[0] == pytest.approx(100 * 53 / 120, abs=1e-6)  # 44.1666...
    assert authenticity_figure(evidence).value == pytest.approx(shares[0] - shares[1], abs=1e-6)
    assert likelihood_gap_figure(evidence).value == pytest.approx(-112.42135485955893, abs=1e-6)


def test_closest_record_share_and_score_are_sdmetrics():
    """On a line, both sides from 0 to 1, where SDMetrics' distance (sum of range-scaled differences) is ours:

        rng = np.random.default_rng(7)
        train, heldout, generated = (np.concatenate([rng.random(n - 2), [0, 1]])[:, None] for n in (100, 100, 152))
        generated = generated[:150]
        frame = lambda x: pd.DataFrame({"x": x[:, 0]})
        metadata = {"columns": {"x": {"sdtype": "numerical"}}}
        DCROverfittingProtection.compute_breakdown(frame(train), frame(generated), frame(heldout), metadata, "t")

    sdmetrics 0.32.0: score 0.8933333333333333, closer_to_training 0.5533333333333333
    """
    rng = np.random.default_rng(7)
    train, heldout, generated = (np.concatenate([rng.random(n - 2), [0, 1]])[:, None] for n in (100, 100, 152))
    result = closest_record_figure(evidence_of(train, heldout, generated[:150]))
    assert min(2 * (1 - result.value), 1) == pytest.approx(0.8933333333333333, abs=1e-6)
    assert result.value == pytest.approx(0.5533333333333333, abs=1e-6)
