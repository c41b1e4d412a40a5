"""Exact nearest neighbours, streamed: an approximate miss would be a leak."""

from __future__ import annotations

import numpy as np

from common.errors import InputError

# below it two unit vectors are the same: an image embedded in two batches comes out 6e-13 apart (float32, CPU), an
# image of 128 x 100 px and its copy with one pixel changed by one grey level 2e-8 (EfficientNet-lite0)
RESOLUTION_L2 = 1e-9
QUERY_BLOCK, REFERENCE_BLOCK = 1024, 10240  # their products take 40 MiB
MIN_GROUPS = 256  # columns whose minima are taken side by side; fewer are slow
ROWS = 8  # of products that a core's cache holds while they are summed up
EXACT_FLOATS = 2**16  # of candidates compared in double precision at once: they stay in a core's cache


def nearest(
    references: np.ndarray,
    queries: np.ndarray,
    k: int = 3,
    *,
    query_block: int = QUERY_BLOCK,
    reference_block: int = REFERENCE_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Squared L2 distances (m, k), ascending, and reference indices (m, k) of the nearest references.

    On unit vectors the distance is 2 - 2 cos. ``k`` shrinks where there are fewer references. Distances below
    ``RESOLUTION_L2`` are 0 exactly, and among equal distances the lowest index comes first: a copy may not stay just
    outside a threshold of 0 (a site with duplicates has one) because it was embedded in another batch.

    The result is that of brute force in double precision, whatever the blocks: products in single precision name the
    candidates, all within twice the largest possible rounding error of the k-th nearest, and double precision decides.
    A query that is not finite has distances that are not numbers.

    Raises:
        InputError: a reference that is not finite; a copy of its image could not be found.
    """
    k = min(k, len(references))
    _check_finite(references)
    distances, neighbours = np.full((len(queries), k), np.nan), np.tile(np.arange(k), (len(queries), 1))
    if not k or not len(queries):
        return distances, neighbours
    search = _Search(references, k, min(query_block, len(queries)), reference_block)
    for start in range(0, len(queries), query_block):
        block = queries[start : start + query_block]
        finite = np.flatnonzero(np.isfinite(block).all(axis=1))
        if len(finite):
            found = search.nearest(block[finite])
            distances[start + finite], neighbours[start + finite] = found
    return distances, neighbours


class _Search:
    """The references as the search needs them: moved to their mean, where products round least."""

    def __init__(self, references: np.ndarray, k: int, n_queries: int, block: int) -> None:
        self._references, self._k, self._block = references, k, block
        self._centre = references.mean(axis=0, dtype=np.float64).astype(np.float32)
        n, dimension = references.shape
        self._right, self._squares = np.empty((n, dimension), np.float32), np.empty(n, np.float32)
        for start in range(0, n, QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            centred = references[part] - self._centre.astype(np.float64)
            self._right[part], self._squares[part] = -2 * centred, np.square(centred).sum(axis=1)
        self._buffer = np.empty(n_queries * min(n, block), np.float32)
        self._largest_norm = float(np.sqrt(self._squares.max()))

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances and indices (m, k) of finite queries."""
        rows, columns = self._candidates(queries)
        distances = _exact(self._references, queries, rows, columns)
        distances[distances < RESOLUTION_L2] = 0
        order = np.lexsort((columns, distances, rows))
        first = np.searchsorted(rows[order], np.arange(len(queries)))
        picked = order[first[:, None] + np.arange(self._k)]
        return distances[picked], columns[picked]

    def _candidates(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of query and reference that hold the k nearest of every query."""
        left = np.subtract(queries, self._centre, dtype=np.float32, casting="same_kind")
        margin = self._margin(np.sqrt(np.einsum("ij,ij->i", left, left)))
        bound = np.full((len(queries), self._k), np.inf, np.float32)  # k values of which each query has some below
        kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for start in range(0, len(self._right), self._block):
            part = slice(start, start + self._block)
            right = self._right[part]
            products = self._buffer[: len(left) * len(right)].reshape(len(left), len(right))
            np.matmul(left, right.T, out=products)
            minima = _add_and_minima(products, self._squares[part], max(MIN_GROUPS, self._k))
            bound, rows, columns = _below(products, minima, bound, margin)
            kept.append((rows, columns + start, products[rows, columns]))
        rows, columns, values = (np.concatenate(part) for part in zip(*kept, strict=True))
        near = values <= bound[rows, -1] + margin[rows]
        return rows[near], columns[near]

    def _margin(self, norms: np.ndarray) -> np.ndarray:
        """Twice the error of a product of n + 1 terms in any order of summation, its factors' rounding included."""
        unit_roundoff = 2.0**-24
        n_roundings = self._references.shape[1] + 8
        error = 1.02 * n_roundings * unit_roundoff * (norms + self._largest_norm) ** 2
        margin: np.ndarray = np.nextafter((2 * error + RESOLUTION_L2).astype(np.float32), np.float32(np.inf))
        return margin


def _add_and_minima(products: np.ndarray, squares: np.ndarray, n_groups: int) -> np.ndarray:
    """Make ``products`` (m, n) of -2 q r to |r|^2 - 2 q r, the distance but for |q|^2, which all of a row share.

    Gives the minima (m, n_groups) of every n_groups-th column, infinite where there is none.
    """
    n_columns = products.shape[1]
    n_whole = n_columns // n_groups * n_groups
    minima = np.full((len(products), n_groups), np.inf, np.float32)
    for start in range(0, len(products), ROWS):
        rows, lowest = products[start : start + ROWS], minima[start : start + ROWS]
        np.add(rows, squares, out=rows)
        if n_whole:
            rows[:, :n_whole].reshape(len(rows), -1, n_groups).min(axis=1, out=lowest)
        rest = rows[:, n_whole:]
        np.minimum(lowest[:, : rest.shape[1]], rest, out=lowest[:, : rest.shape[1]])
    return minima


def _below(
    products: np.ndarray, minima: np.ndarray, bound: np.ndarray, margin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k smallest group minima so far (m, k), and the pairs within ``margin`` of the largest of them.

    Minima of disjoint groups of columns are values of k different columns, so none of the k smallest values is above
    the k-th smallest minimum; only groups whose minimum is as low are looked into.
    """
    k, n_groups, n_columns = bound.shape[1], minima.shape[1], products.shape[1]
    bound = np.partition(np.concatenate([bound, minima], axis=1), k - 1, axis=1)[:, :k]
    bound.sort(axis=1)
    limit = bound[:, -1] + margin
    rows, groups = np.nonzero(minima <= limit[:, None])
    columns = groups[:, None] + np.arange(0, n_columns, n_groups)
    inside = columns < n_columns
    columns = np.minimum(columns, n_columns - 1)
    pairs, places = np.nonzero((products[rows[:, None], columns] <= limit[rows, None]) & inside)
    return bound, rows[pairs], columns[pairs, places]


def _exact(references: np.ndarray, queries: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances of pairs in double precision."""
    squared = np.empty(len(rows))
    step = max(1, EXACT_FLOATS // references.shape[1])
    for start in range(0, len(rows), step):
        pairs = slice(start, start + step)
        differences = np.subtract(references[columns[pairs]], queries[rows[pairs]], dtype=np.float64)
        squared[pairs] = np.square(differences, out=differences).sum(axis=1)
    return squared


def _check_finite(references: np.ndarray) -> None:
    n_broken = int((~np.isfinite(references).all(axis=1)).sum()) if len(references) else 0
    if n_broken:
        raise InputError(
            f"the features of {n_broken} of {len(references)} images hold NaN or infinity",
            where="memorization",
            fix="look for broken images, or for weights of the embedder that are not what they should be",
        )
