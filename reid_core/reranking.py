"""k-reciprocal re-ranking: a gallery row moves up where it shares neighbors with the query.

Shapes: Q queries, G gallery rows, N = Q + G, D feature width, k1 and k2 neighbors.

Zhong, Zheng, Cao, Li: "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR
2017. Neighbor sets and their weights are sparse; only the result is dense, (Q, G).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reid_core.compiled import compiled
from reid_core.jaccard.reciprocal import SparseRows, averaged, offsets, reciprocal_weights
from reid_core.knn.products import on_host, unit_rows
from reid_core.knn.search import nearest
from reid_core.knn.threads import over_blocks

_BLOCK = 64  # queries that one thread takes at a time
_ROWS_AT_ONCE = 1024  # of products with all rows: one block at a time, by all threads together


def rerank(
    queries: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    original: float = 0.3,
) -> np.ndarray:
    """Distances of queries to gallery rows, (1 - original) d_J + original d.

    d is the squared Euclidean distance over the row's largest one; d_J the Jaccard distance of
    the k-reciprocal sets, expanded, weighted by exp(-d), averaged over the k2 nearest rows.

    Args:
        queries: (Q, D) unit rows.
        gallery: (G, D) unit rows.
        k1: neighbors that reciprocity is asked for, beside the row itself; lowered to N - 1.
        k2: rows to average the weights over, the row itself included; 1 averages nothing.
        original: weight of the original distance, in [0, 1].

    Returns:
        (Q, G) float32, smaller = more similar.

    Raises:
        ValueError: k1 or k2 below 1, k2 above k1, `original` outside [0, 1], no gallery, or rows
            that are not of unit length.

    Reference: Zhong et al., CVPR 2017, k1 = 20, k2 = 6, lambda = 0.3.
    """
    if not 1 <= k2 <= k1:
        raise ValueError(f"k1={k1} and k2={k2}: 1 <= k2 <= k1 is needed")
    if not 0 <= original <= 1:
        raise ValueError(f"original={original} is a share, from 0 to 1")
    sides = [np.asarray(on_host(unit_rows(side))) for side in (queries, gallery)]
    features = np.concatenate(sides)
    num_queries, num_rows = len(sides[0]), len(features)
    result = nearest(features, min(k1 + 1, num_rows))
    farthest = _farthest(features)
    weights = _rescaled(reciprocal_weights(result, features, min(k1, num_rows - 1)), farthest)
    if k2 > 1:
        weights = averaged(weights, np.ascontiguousarray(result.rows[:, :k2]))
    mixed = _shared(weights, num_queries)
    whole = torch.from_numpy(mixed)  # changed in place: (Q, G) once, not five times
    every, most = torch.from_numpy(features), torch.from_numpy(farthest[:num_queries, None])
    parts = [x.split(_ROWS_AT_ONCE) for x in (whole, every[:num_queries], most)]
    for shared, of_queries, largest in zip(*parts, strict=True):
        distance = _products(of_queries, every[num_queries:])
        distance.mul_(-2).add_(2).div_(largest).mul_(original)
        shared.copy_(1 - shared / (2 - shared)).mul_(1 - original).add_(distance)
    return mixed


def _farthest(features: np.ndarray) -> np.ndarray:
    """(N,) largest squared distance of each row, at least a little above 0."""

    every = torch.from_numpy(features)
    least = torch.cat([_products(x, every).amin(dim=1) for x in every.split(_ROWS_AT_ONCE)])
    largest: np.ndarray = (2 - 2 * least).clamp(min=1e-6).numpy()
    return largest


def _products(rows: Tensor, others: Tensor) -> Tensor:
    """(n, m) float32 products, whatever precision the caller computes in."""
    with torch.autocast("cpu", enabled=False):
        return rows @ others.T


def _rescaled(weights: SparseRows, farthest: np.ndarray) -> SparseRows:
    """Softmax of -d instead of the softmax of 2 cos: that to the power 1 / farthest, normalized."""
    sizes, starts = np.diff(weights.indptr), weights.indptr[:-1]
    # a weight of 0 is one that underflowed
    values = np.maximum(weights.values, np.finfo(np.float32).tiny)
    # over the row's largest one, or where all rows are alike a large power would leave zeros alone
    values = values / np.repeat(np.maximum.reduceat(values, starts), sizes)
    values **= np.repeat(1 / farthest, sizes)
    values /= np.repeat(np.add.reduceat(values, starts), sizes)
    return SparseRows(weights.indptr, weights.columns, values.astype(np.float32))


def _shared(weights: SparseRows, num_queries: int) -> np.ndarray:
    """(Q, G) sums over the columns of min(V_query, V_gallery)."""
    num_rows = len(weights)
    rows = np.repeat(np.arange(num_rows), np.diff(weights.indptr))
    order = np.argsort(weights.columns, kind="stable")
    order = order[rows[order] >= num_queries]  # gallery entries, column by column
    indptr = offsets(np.bincount(weights.columns[order], minlength=num_rows))
    index_rows = (rows[order] - num_queries).astype(np.int32)
    index_values = weights.values[order]
    shared = np.zeros((num_queries, num_rows - num_queries), dtype=np.float32)

    def work(start: int, stop: int) -> None:
        _add_shared(
            weights.indptr, weights.columns, weights.values,
            indptr, index_rows, index_values, start, shared[start:stop],
        )  # fmt: skip

    over_blocks(work, num_queries, _BLOCK)
    return shared


@compiled()
def _add_shared(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    index_indptr: np.ndarray,
    index_rows: np.ndarray,
    index_values: np.ndarray,
    start: int,
    shared: np.ndarray,
) -> None:
    for q in range(shared.shape[0]):
        for e in range(indptr[start + q], indptr[start + q + 1]):
            column, value = columns[e], values[e]
            for p in range(index_indptr[column], index_indptr[column + 1]):
                shared[q, index_rows[p]] += min(value, index_values[p])
