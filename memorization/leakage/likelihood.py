"""How much likelier the training images are than held-out ones under a mixture centred at the generated images.

Feature likelihood divergence (Jiralerspong et al. 2023, arXiv 2302.04440): a generated image that copies a training
image gets a variance near 0, and the likelihood of that training image, and of no other, becomes huge.
"""

from __future__ import annotations

import numpy as np

from common.errors import InputError
from common.resampling import N_RESAMPLES, bootstrap_weights, percentile_interval
from common.seeds import derive_seed
from memorization.leakage.evidence import Evidence, MetricResult
from memorization.leakage.relabelled import EXCHANGEABLE, p_over_patients, pool_of, squared_distances

N_STEPS, STEP_SIZE = 50, 0.5  # of Adam, as in the authors' package fld
DECAYS, DIVISOR_OFFSET = (0.9, 0.999), 1e-8
ORIGIN_SHARE = 0.1  # how far the component that keeps lone training images likely is pulled towards them
LOG_VARIANCES = (-40.0, 20.0)
MAX_CENTRES = 10_000
N_REFITS, REFIT_STEPS, REFIT_CENTRES = 199, 10, 500  # of p: every relabelling fits anew; p is at least 1 / 200


def likelihood_gap_figure(evidence: Evidence) -> MetricResult:
    """100 (NLL of T - NLL of H) / d with features standardised on T; interval over resampled patients, mixture kept."""
    seed = derive_seed(evidence.seed, "likelihood")
    generated = _at_most(evidence.generated, MAX_CENTRES, derive_seed(evidence.seed, "likelihood", "centres"))
    by = np.asarray(evidence.train, np.float64)
    train, heldout, generated = _standardised(by, by, evidence.heldout, generated)
    if not train.shape[1]:
        raise InputError("all training images have the same features", where="leakage, FLD", fix="check the embedder")
    log_variances = fit_log_variances(generated, train)
    of_train, of_heldout = (
        negative_log_likelihoods(side, generated, log_variances) / side.shape[1] for side in (train, heldout)
    )
    value = 100 * float(of_train.mean() - of_heldout.mean())
    trained = bootstrap_weights(evidence.train_patients, N_RESAMPLES, derive_seed(seed, "train"))
    others = bootstrap_weights(evidence.heldout_patients, N_RESAMPLES, derive_seed(seed, "heldout"))
    resampled = (trained @ of_train) / trained.sum(axis=1) - (others @ of_heldout) / others.sum(axis=1)
    low, high = percentile_interval(100 * resampled, value)
    p = _p_over_patients(evidence)
    return MetricResult(value, low, high, interval="bootstrap over patients, mixture kept", p=p, test=EXCHANGEABLE)


def _p_over_patients(evidence: Evidence) -> float:
    """Of the gap with features standardised on all real images, and a short fit that every labelling has anew."""
    pool = pool_of(evidence)
    seed = derive_seed(evidence.seed, "likelihood")
    centres = _at_most(pool.generated, REFIT_CENTRES, derive_seed(seed, "refitted centres"))
    real, generated = _standardised(pool.real, pool.real, centres)
    squared, dimension = squared_distances(real, generated), real.shape[1]

    def statistic(in_train: np.ndarray) -> float:
        to_mean = _pulled_to_mean(real[in_train])
        log_variances = _fit(squared[in_train], to_mean, dimension, REFIT_STEPS)
        of_train, of_heldout = (
            _of_distances(squared[side], log_variances, dimension).mean() for side in (in_train, ~in_train)
        )
        return float(of_train - of_heldout)

    return p_over_patients(pool, statistic, seed, N_REFITS)


def fit_log_variances(centres: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Log variances (m,) of isotropic Gaussians at ``centres`` (m, d) that make ``images`` (n, d) likely.

    50 steps of Adam from the variance that suits the nearest image, with a component at the images' mean beside them
    during the fit, as in the package fld.
    """
    return _fit(squared_distances(images, centres), _pulled_to_mean(images), images.shape[1], N_STEPS)


def _pulled_to_mean(images: np.ndarray) -> np.ndarray:
    """Squared distances (n, 1) to the component at the images' mean."""
    return np.asarray((1 - ORIGIN_SHARE) ** 2 * np.square(images - images.mean(axis=0)).sum(axis=1, keepdims=True))


def _fit(squared: np.ndarray, to_mean: np.ndarray, dimension: int, n_steps: int) -> np.ndarray:
    """Adam on the mean negative log likelihood per dimension, by each log variance."""
    from scipy.special import softmax

    n_centres = squared.shape[1]
    distances = np.concatenate([squared, to_mean], axis=1)
    offsets = np.append(np.full(n_centres, -np.log(n_centres)), 0.0)
    parameters = np.append(np.log((squared.min(axis=0) + 1e-3) / dimension), 0.0)
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(1, n_steps + 1):
        responsibilities = softmax(_log_densities(distances, parameters, dimension) + offsets, axis=1)
        slopes = distances / (2 * np.exp(parameters)) - dimension / 2
        gradient = -(responsibilities * slopes).mean(axis=0) / dimension
        first = DECAYS[0] * first + (1 - DECAYS[0]) * gradient
        second = DECAYS[1] * second + (1 - DECAYS[1]) * gradient**2
        root = np.sqrt(second / (1 - DECAYS[1] ** step)) + DIVISOR_OFFSET
        parameters = parameters - STEP_SIZE * first / (1 - DECAYS[0] ** step) / root
        parameters[:-1] = np.clip(parameters[:-1], *LOG_VARIANCES)
    return np.asarray(parameters[:-1])


def negative_log_likelihoods(images: np.ndarray, centres: np.ndarray, log_variances: np.ndarray) -> np.ndarray:
    """Of each image (n, d) under equally weighted isotropic Gaussians at ``centres`` (m, d); (n,), nats."""
    return _of_distances(squared_distances(images, centres), log_variances, images.shape[1])


def _of_distances(squared: np.ndarray, log_variances: np.ndarray, dimension: int) -> np.ndarray:
    from scipy.special import logsumexp

    densities = _log_densities(squared, log_variances, dimension)
    return np.asarray(np.log(len(log_variances)) - logsumexp(densities, axis=1))


def _log_densities(squared: np.ndarray, log_variances: np.ndarray, dimension: int) -> np.ndarray:
    return np.asarray(-squared / (2 * np.exp(log_variances)) - dimension / 2 * (log_variances + np.log(2 * np.pi)))


def _standardised(by: np.ndarray, *sides: np.ndarray) -> list[np.ndarray]:
    """Zero mean and unit variance over the images of ``by``; features that are constant there are left out."""
    centre, spread = by.mean(axis=0), by.std(axis=0, ddof=1)
    used = spread > 0
    return [(np.asarray(side, np.float64) - centre)[:, used] / spread[used] for side in sides]


def _at_most(centres: np.ndarray, most: int, seed: int) -> np.ndarray:
    """So many of the centres, drawn, or all of them."""
    if len(centres) <= most:
        return centres
    return centres[np.random.default_rng(seed).choice(len(centres), most, replace=False)]
