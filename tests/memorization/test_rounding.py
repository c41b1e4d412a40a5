"""The filter where numbers are not exact: rounding, features that are no numbers, duplicates among the real images."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from features.embedders import build_embedder
from features.index import nearest
from memorization.calibration import MemorizationConfig, calibrate
from memorization.filter import filter_samples

PAPER = MemorizationConfig(rule="percentile", calibration="paper_half", drop_ties=False, mirror="never")
DIMENSION = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embedded_again(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same images' features out of other batches: 1e-7 away, as float32 leaves them."""
    return unit(features + 1e-7 / np.sqrt(DIMENSION) * rng.normal(size=features.shape))


def site_with_duplicates(rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """40 patients of one image; 6 images are filed under two patients each."""
    images = unit(rng.normal(size=(34, DIMENSION)))
    return np.concatenate([images, embedded_again(images[:6], rng)]), [f"p{i:02d}" for i in range(40)]


def test_a_site_with_duplicates_still_drops_copies() -> None:
    """D31/D32: with more duplicates than the percentile the original's threshold is 0, and its strict rule drops none.

    Without a resolution the threshold is 1e-14 here and which copies lie below it is a matter of rounding.
    """
    rng = np.random.default_rng(0)
    features, patients = site_with_duplicates(rng)
    found = calibrate(features, patients, len(features), MemorizationConfig(), seed=0)
    copies = embedded_again(np.repeat(features, 5, axis=0), rng)
    assert found.threshold_l2 == 0 and found.expected_drop == pytest.approx(12 / 40)
    assert not filter_samples(features, copies, found.threshold_l2, MemorizationConfig()).kept.any()
    assert filter_samples(features, copies, found.threshold_l2, PAPER).kept.all()
    fresh = unit(rng.normal(size=(50, DIMENSION)))
    assert filter_samples(features, fresh, found.threshold_l2, MemorizationConfig()).kept.all()


def test_features_that_are_no_numbers_are_never_kept() -> None:
    """What cannot be compared does not leave, under either rule, nor does anything under a threshold that is none."""
    references = np.eye(3, DIMENSION, dtype=np.float32)
    broken = np.full((2, DIMENSION), np.nan, np.float32)
    for config in (MemorizationConfig(), PAPER):
        assert not filter_samples(references, broken, 0.1, config).kept.any()
        assert not filter_samples(references, -references, float("nan"), config).kept.any()


@pytest.mark.parametrize("n_queries", [1, 64])
def test_among_equal_distances_the_lowest_index_comes_first(n_queries: int) -> None:
    rng = np.random.default_rng(1)
    image = unit(rng.normal(size=(1, DIMENSION)))
    references = np.concatenate([unit(rng.normal(size=(4, DIMENSION))), np.repeat(image, 6, axis=0)])
    distances, neighbours = nearest(references, np.repeat(image, n_queries, axis=0))
    assert (neighbours == [4, 5, 6]).all() and not distances.any()


def test_the_nearest_of_many_near_copies_is_found_exactly() -> None:
    """Near-copies lie closer together than float32 products resolve; a search in double precision agrees."""
    rng = np.random.default_rng(2)
    image = unit(rng.normal(size=(1, 512)))
    references = unit(image + 1e-4 * rng.normal(size=(60, 512)))
    queries = unit(image + 1e-4 * rng.normal(size=(40, 512)))
    distances, neighbours = nearest(references, queries, k=1)
    squared = np.square(references[None].astype(float) - queries[:, None].astype(float)).sum(axis=2)
    np.testing.assert_allclose(distances[:, 0], squared.min(axis=1), rtol=1e-9)
    assert np.array_equal(neighbours[:, 0], squared.argmin(axis=1))


def test_no_samples_have_no_neighbours() -> None:
    distances, neighbours = nearest(np.eye(4, dtype=np.float32), np.zeros((0, 4), np.float32))
    assert distances.shape == neighbours.shape == (0, 3)


def test_the_threshold_survives_another_order_and_other_batches() -> None:
    """The subsample of the index is drawn from an order that neither file listing nor rounding changes."""
    rng = np.random.default_rng(3)
    features, patients = unit(rng.normal(size=(200, DIMENSION))), [f"p{i // 4}" for i in range(200)]
    order = rng.permutation(200)
    again = embedded_again(features, rng)[order]
    first = calibrate(features, patients, 60, MemorizationConfig(), seed=5)
    second = calibrate(again, [patients[i] for i in order], 60, MemorizationConfig(), seed=5)
    np.testing.assert_allclose(second.distances, first.distances, atol=1e-5)
    assert first.n_references == second.n_references == 60


def test_copies_are_at_distance_0_however_the_images_fall_into_batches() -> None:
    rng = np.random.default_rng(4)
    smooth = rng.integers(0, 256, (10, 1, 4, 3)).repeat(32, axis=2).repeat(32, axis=3).astype(np.uint8)
    features = [build_embedder("efficientnet_lite0", batch_size=n, device="cpu").embed(smooth) for n in (10, 3)]
    assert not nearest(features[0], features[1], 1)[0].any()
    marked = smooth.copy()
    marked[:, 0, 60, 50] ^= 8
    assert nearest(features[0], build_embedder("efficientnet_lite0", batch_size=10, device="cpu").embed(marked), 1)[
        0
    ].all()


def test_a_batch_of_no_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"memorization\.batch_size"):
        MemorizationConfig(batch_size=0)
