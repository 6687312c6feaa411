"""The rival of benchmarks/clustering.py: k-reciprocal clustering as public re-ID code does it.

Dense float32 N x N matrices, one Python loop over the rows per step, NumPy inside a row. Written
from the algorithm's description; it gets the same neighbors as ours, so the labels can be equal.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import DBSCAN

from reid_core.knn.search import nearest


@dataclass(frozen=True)
class Timed:
    """Labels, and seconds of the neighbor search and of everything."""

    labels: np.ndarray
    search_seconds: float
    seconds: float


def cluster(
    features: np.ndarray, *, k1: int = 30, k2: int = 6, eps: float = 0.6, min_samples: int = 4
) -> Timed:
    """Labels of (N, D) unit rows."""
    start = time.perf_counter()
    ranks = nearest(features, k1).rows
    search_seconds = time.perf_counter() - start
    weights = _weights(features, ranks, k1)
    if k2 > 1:
        averaged = np.zeros_like(weights)
        for i in range(len(ranks)):
            averaged[i] = weights[ranks[i, :k2]].mean(axis=0)
        weights = averaged
        del averaged
    distance = _jaccard(weights)
    del weights
    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)
    return Timed(labels, search_seconds, time.perf_counter() - start)


def _reciprocal(ranks: np.ndarray, i: int, columns: int) -> np.ndarray:
    forward = ranks[i, :columns]
    backward = ranks[forward, :columns]
    return forward[np.where(backward == i)[0]]


def _weights(features: np.ndarray, ranks: np.ndarray, k1: int) -> np.ndarray:
    num_rows = len(ranks)
    half = int(np.around(k1 / 2)) + 1
    full_sets = [_reciprocal(ranks, i, k1) for i in range(num_rows)]
    half_sets = [_reciprocal(ranks, i, half) for i in range(num_rows)]
    weights = np.zeros((num_rows, num_rows), dtype=np.float32)
    for i, own in enumerate(full_sets):
        members = own
        for q in own:
            others = half_sets[q]
            if len(np.intersect1d(others, own)) > 2 / 3 * len(others):
                members = np.append(members, others)
        members = np.unique(members)
        raw = np.exp(2 * (features[members] @ features[i]) - 2)
        weights[i, members] = raw / raw.sum()
    return weights


def _jaccard(weights: np.ndarray) -> np.ndarray:
    num_rows = len(weights)
    rows_with = [np.where(weights[:, k] != 0)[0] for k in range(num_rows)]
    distance = np.zeros((num_rows, num_rows), dtype=np.float32)
    for i in range(num_rows):
        shared = np.zeros(num_rows, dtype=np.float32)
        for k in np.where(weights[i] != 0)[0]:
            rows = rows_with[k]
            shared[rows] += np.minimum(weights[i, k], weights[rows, k])
        distance[i] = 1 - shared / (2 - shared)
    distance[distance < 0] = 0
    return distance
