"""Which of two sets of images is nearer to images of strangers, in equal numbers and against the same resamples.

The Fréchet distance falls as images are added, so that the larger set is cut into parts as large as the smaller one and
their mean distance counts. What is resampled is shared: both sets meet the same strangers, so that the interval of the
ratio is that of a comparison and not of two distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.resampling import bootstrap_weights, percentile_interval
from features.fidelity import N_RESAMPLES, Estimate, estimate_of, frechet_distance


@dataclass(frozen=True, eq=False)
class ComparedSets:
    """Features (n, d) at one site: two sets, and the images, of ``owners``, that both are compared with."""

    a: np.ndarray
    b: np.ndarray
    references: np.ndarray
    owners: Sequence[str]

    @property
    def n_images(self) -> int:
        """In a part: as many as the smaller set has."""
        return min(len(self.a), len(self.b))


@dataclass(frozen=True)
class FrechetComparison:
    """Distances of both sets to the references, and that of ``a`` over that of ``b``."""

    a: Estimate
    b: Estimate
    ratio: Estimate


def compare_frechet(
    folds: Sequence[Sequence[ComparedSets]], seed: int, *, is_paired: bool = False
) -> FrechetComparison:
    """Means over outer folds (usually one); the sites of a fold are one set, and each is resampled by itself.

    Args:
        is_paired: the i-th images of both sets belong together (one seed) and are drawn together.
    """
    values = np.mean([_distances(sites, [_all_of(site) for site in sites]) for sites in folds], axis=0)
    rng = np.random.default_rng(seed)
    drawn = np.array([_resampled(folds, is_paired, rng) for _ in range(N_RESAMPLES)])
    a, b = (estimate_of(float(value), column) for value, column in zip(values, drawn.T, strict=True))
    ratio, ratios = values[0] / values[1], drawn[:, 0] / drawn[:, 1]
    low, high = np.exp(percentile_interval(np.log(ratios), float(np.log(ratio))))
    return FrechetComparison(a, b, Estimate(float(ratio), float(ratios.std(ddof=1)), float(low), float(high)))


Parts = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
"""Of one site: rows of both sets, part by part, and rows of the references."""


def _all_of(site: ComparedSets) -> Parts:
    return _parts_of(site.a, site.n_images), _parts_of(site.b, site.n_images), np.arange(len(site.references))


def _parts_of(features: np.ndarray, n_images: int) -> list[np.ndarray]:
    """As many disjoint parts of ``n_images`` as there are; what is left over is left out."""
    return [np.arange(start, start + n_images) for start in range(0, len(features) - n_images + 1, n_images)]


def _resampled(folds: Sequence[Sequence[ComparedSets]], is_paired: bool, rng: np.random.Generator) -> np.ndarray:
    return np.mean([_distances(sites, [_drawn(site, is_paired, rng) for site in sites]) for sites in folds], axis=0)


def _drawn(site: ComparedSets, is_paired: bool, rng: np.random.Generator) -> Parts:
    """Images of each part, and patients of the references, drawn with replacement."""
    parts_a, parts_b, _ = _all_of(site)
    drawn_a = [rng.choice(part, len(part)) for part in parts_a]
    drawn_b = [rng.choice(part, len(part)) for part in parts_b]
    counts = bootstrap_weights(site.owners, 1, rng)[0]
    return drawn_a, drawn_a if is_paired else drawn_b, np.repeat(np.arange(len(counts)), counts)


def _distances(sites: Sequence[ComparedSets], parts: Sequence[Parts]) -> np.ndarray:
    """Of both sets (2,): the mean over parts, each of images of all sites."""
    references = np.concatenate([site.references[rows] for site, (_, _, rows) in zip(sites, parts, strict=True)])
    means = []
    for side, name in enumerate(("a", "b")):
        of_sites = zip(*(part[side] for part in parts), strict=False)  # as many as every site has
        sets = [np.concatenate([getattr(s, name)[rows] for s, rows in zip(sites, p, strict=True)]) for p in of_sites]
        means.append(np.mean([frechet_distance(features, references) for features in sets]))
    return np.array(means)
