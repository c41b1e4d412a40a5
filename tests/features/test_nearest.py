"""The streamed search gives what brute force in double precision gives, ties included, whatever its blocks."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from features.benchmark import main
from features.index import RESOLUTION_L2, nearest

BLOCKS = ((1, 1), (3, 7), (64, 50), (17, 1000), (4096, 2560))


def brute_force(references: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    differences = queries[:, None].astype(np.float64) - references[None].astype(np.float64)
    distances = np.square(differences).sum(axis=2)
    distances[distances < RESOLUTION_L2] = 0
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def grid(rng: np.random.Generator, n: int) -> np.ndarray:
    """Points of a small grid: many exact ties and many equal points."""
    return rng.integers(0, 3, (n, 4)).astype(np.float32)


def homogeneous(rng: np.random.Generator, n: int) -> np.ndarray:
    """A site whose images look alike: all distances are below what single precision tells apart at norm 1."""
    return unit(np.ones(256) + 1e-5 * rng.normal(size=(n, 256)))


def spread(rng: np.random.Generator, n: int) -> np.ndarray:
    return unit(rng.normal(size=(n, 64)))


@pytest.mark.parametrize("make", [grid, homogeneous, spread])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_it_is_brute_force_in_double_precision_whatever_the_blocks(make, k: int) -> None:
    rng = np.random.default_rng(0)
    references, queries = make(rng, 300), make(rng, 130)
    queries[5] = references[7]
    distances, neighbours = brute_force(references, queries, k)
    for query_block, reference_block in BLOCKS:
        found = nearest(references, queries, k, query_block=query_block, reference_block=reference_block)
        np.testing.assert_array_equal(found[1], neighbours)
        np.testing.assert_array_equal(found[0], distances)


def test_more_neighbours_than_references_are_all_references() -> None:
    rng = np.random.default_rng(1)
    references, queries = spread(rng, 5), spread(rng, 9)
    for found, expected in zip(nearest(references, queries, 8), brute_force(references, queries, 8), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_query_that_is_no_number_has_no_distance_and_disturbs_no_other() -> None:
    rng = np.random.default_rng(2)
    references, queries = spread(rng, 50), spread(rng, 20)
    expected = nearest(references, queries)
    queries[[3, 4]] = np.nan
    queries[4, 0] = np.inf
    distances, neighbours = nearest(references, queries)
    others = [i for i in range(20) if i not in (3, 4)]
    assert np.isnan(distances[[3, 4]]).all()
    np.testing.assert_array_equal(distances[others], expected[0][others])
    np.testing.assert_array_equal(neighbours[others], expected[1][others])


def test_a_reference_that_is_no_number_is_refused() -> None:
    """Faiss passed over it, and with it over every copy of its image."""
    references = spread(np.random.default_rng(3), 4)
    references[2, 1] = np.nan
    with pytest.raises(InputError, match="1 of 4"):
        nearest(references, references)


def test_the_benchmark_prints_a_line_for_each_search(capsys) -> None:
    sizes = ["--queries=64", "--references=40", "--dimension=16", "--repeats=1"]
    assert main(sizes) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("ours", "faiss", "loop", "identical to double precision: yes"))
