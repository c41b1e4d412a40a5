"""Exact nearest neighbours: an approximate miss would be a leak."""

from __future__ import annotations

import numpy as np

BLOCK = 1024  # queries whose neighbours are compared in double precision at once


def nearest(references: np.ndarray, queries: np.ndarray, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Squared L2 distances (m, k), ascending, and reference indices (m, k) of the nearest references.

    On unit vectors the distance is 2 - 2 cos. ``k`` shrinks where there are fewer references. A copy is at distance 0
    exactly: rounding may not leave it just outside a threshold of 0.
    """
    import faiss

    k = min(k, len(references))
    index = faiss.IndexFlatL2(references.shape[1])
    index.add(np.ascontiguousarray(references, np.float32))
    _, neighbours = index.search(np.ascontiguousarray(queries, np.float32), k)
    distances = np.concatenate(
        [_exact(references, queries[i : i + BLOCK], neighbours[i : i + BLOCK]) for i in range(0, len(queries), BLOCK)]
    )
    order = np.lexsort((neighbours, distances), axis=1)
    rows = np.arange(len(queries))[:, None]
    return distances[rows, order], neighbours[rows, order]


def _exact(references: np.ndarray, queries: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    differences = references[neighbours].astype(np.float64) - queries[:, None].astype(np.float64)
    squared: np.ndarray = np.square(differences).sum(axis=2)
    return squared
