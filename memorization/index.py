"""Exact nearest neighbours: an approximate miss would be a leak."""

from __future__ import annotations

import numpy as np

BLOCK = 1024  # queries whose neighbours are compared in double precision at once
# below it two unit vectors are the same: an image embedded in two batches comes out 6e-13 apart (float32, CPU), an
# image of 128 x 100 px and its copy with one pixel changed by one grey level 2e-8 (EfficientNet-lite0)
RESOLUTION_L2 = 1e-9


def nearest(references: np.ndarray, queries: np.ndarray, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Squared L2 distances (m, k), ascending, and reference indices (m, k) of the nearest references.

    On unit vectors the distance is 2 - 2 cos. ``k`` shrinks where there are fewer references. Distances below
    ``RESOLUTION_L2`` are 0 exactly, and among equal distances the lowest index comes first: a copy may not stay just
    outside a threshold of 0 (a site with duplicates has one) because it was embedded in another batch.
    """
    import faiss

    k = min(k, len(references))
    index = faiss.IndexFlatL2(references.shape[1])
    index.add(np.ascontiguousarray(references, np.float32))
    _, neighbours = index.search(np.ascontiguousarray(queries, np.float32), k)
    distances = np.empty(neighbours.shape)
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        distances[block] = _exact(references, queries[block], neighbours[block])
    distances[distances < RESOLUTION_L2] = 0
    order = np.lexsort((neighbours, distances), axis=1)
    rows = np.arange(len(queries))[:, None]
    return distances[rows, order], neighbours[rows, order]


def _exact(references: np.ndarray, queries: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    differences = references[neighbours].astype(np.float64) - queries[:, None].astype(np.float64)
    squared: np.ndarray = np.square(differences).sum(axis=2)
    return squared
