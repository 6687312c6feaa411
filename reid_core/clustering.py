"""Clusters of unlabeled features: k-reciprocal Jaccard graph, DBSCAN, centroids.

Shapes: N rows, D feature width, C clusters. Everything is sparse: memory grows with the number of
neighbors kept, never with N x N. The same features give the same labels on any number of threads.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from reid_core.compiled import compiled
from reid_core.jaccard.distances import jaccard_distances
from reid_core.jaccard.reciprocal import averaged, reciprocal_weights
from reid_core.knn.neighbors import Neighbors, Search
from reid_core.knn.products import Features, unit_rows
from reid_core.knn.search import nearest
from reid_core.knn.two_pools import alternating, merged_by_similarity
from reid_core.types import OUTLIER

Order = Literal["similarity", "alternating"]

_GATHER_BYTES = 1 << 26  # rows of clusters that are averaged at a time


def jaccard_graph(
    features: Features, *, k1: int = 30, k2: int = 6, max_distance: float = 1.0
) -> csr_array:
    """k-reciprocal Jaccard distances between rows, as a sparse symmetric graph.

    Args:
        features: (N, D) unit rows, array or tensor, CPU or CUDA, with a gradient or without;
            other precisions are taken as float32.
        k1: neighbors that reciprocity is asked for, the row itself included; N where N is less.
        k2: neighbors that the weights are averaged over, the row itself included; k1 where k1 is
            less.
        max_distance: in [0, 1]; entries above are absent. At 1 all pairs that share anything stay,
            which may be N^2 of them.

    Returns:
        float32 CSR (N, N). Every kept entry is stored, zeros and the diagonal (0) too; columns are
        sorted within a row.

    Raises:
        ValueError: settings out of range; a row that is zero, not finite or not of unit length.

    Reference: Zhong et al., CVPR 2017, as CCLNet's and cluster-contrast's code compute it.
    """
    return jaccard_graph_of_neighbors(
        nearest(features, k1), features, k1=k1, k2=k2, max_distance=max_distance
    )


def jaccard_graph_of_neighbors(
    neighbors: Neighbors,
    features: Features,
    *,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 1.0,
    averaged_over: np.ndarray | None = None,
) -> csr_array:
    """`jaccard_graph` for neighbors that were found elsewhere: in parallel, approximately, ...

    Args:
        neighbors: (N, min(k1, N)) neighbors of each row, the row itself first.
        features: (N, D) unit rows, for the few similarities that the lists do not hold.
        k1, k2, max_distance: as in `jaccard_graph`.
        averaged_over: (N, any) int32 rows to average each row's weights over, in place of the
            first k2 neighbors.

    Returns:
        As `jaccard_graph`.

    Raises:
        ValueError: as `jaccard_graph`; also neighbors of another k1 or of other features.
    """
    if not isinstance(k2, (int, np.integer)) or k2 < 1:
        raise ValueError(
            f"k2 is {k2!r}, no whole number above 0: weights are averaged over the row at least"
        )
    if neighbors.rows.shape != (len(features), min(k1, len(features))):
        raise ValueError(
            f"neighbors of shape {neighbors.rows.shape} do not fit {len(features)} rows and k1={k1}"
        )
    if not 0 <= max_distance <= 1:
        raise ValueError(f"max_distance is {max_distance}; Jaccard distances lie in [0, 1]")
    weights = reciprocal_weights(neighbors, unit_rows(features), k1)
    if averaged_over is None:
        averaged_over = neighbors.rows[:, :k2]
    weights = averaged(weights, np.ascontiguousarray(averaged_over))
    return jaccard_distances(weights, max_distance=max_distance)


def cluster(
    features: Features,
    *,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
    search: Search = nearest,
) -> np.ndarray:
    """Pseudo labels: DBSCAN on the k-reciprocal Jaccard distance.

    Args:
        features, k1, k2: as in `jaccard_graph`.
        eps: largest distance between neighbors, in [0, 1].
        min_samples: neighbors, itself included, that make a row a core of a cluster.
        search: finds the k nearest rows of each row; one that uses several machines, say.

    Returns:
        int64 (N,), contiguous from 0; -1 = outlier.

    Raises:
        ValueError: as `jaccard_graph`; `min_samples` below 1.

    Reference: CCLNet, stages 0 and 2, pseudo labels (k1=30, k2=6, eps=0.6, min_samples=4).
    """
    features = unit_rows(features)
    neighbors = search(features, k1)
    graph = jaccard_graph_of_neighbors(neighbors, features, k1=k1, k2=k2, max_distance=eps)
    return dbscan(graph, eps=eps, min_samples=min_samples)


def cluster_jointly(
    features: Features,
    is_second: np.ndarray,
    *,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
    balanced: bool = True,
    order: Order = "similarity",
    search: Search = nearest,
) -> np.ndarray:
    """One clustering over two modalities, half of each row's neighbors from either.

    Without the balance a row's nearest neighbors are all of its own modality, and no cluster
    reaches across.

    Args:
        features: (N, D) unit rows of both modalities, as in `jaccard_graph`.
        is_second: (N,) bool, which rows belong to the second modality.
        k1: even; k1 / 2 neighbors come from each modality.
        k2: the weights are averaged over the k2 nearest rows of each modality, k1 / 2 where that
            is less; at 1 they stay as they are.
        eps, min_samples: as in `cluster`.
        balanced: False is `cluster` on all rows, and `is_second` has no effect.
        order: of the k1 neighbors, of which the first half decides what joins a set: by
            "similarity", or own and other modality "alternating" (ours).
        search: as in `cluster`.

    Returns:
        int64 (N,), contiguous from 0; -1 = outlier.

    Raises:
        ValueError: as `jaccard_graph`; also an odd k1 or a modality with fewer than k1 / 2 rows.

    Reference: BMIL, stage 2, joint labels.
    """
    if not balanced:
        return cluster(features, k1=k1, k2=k2, eps=eps, min_samples=min_samples, search=search)
    features = unit_rows(features)
    halves = search(features, k1, is_second=is_second)
    graph = balanced_graph(halves, features, is_second, k1=k1, k2=k2, max_distance=eps, order=order)
    return dbscan(graph, eps=eps, min_samples=min_samples)


def balanced_graph(
    halves: Neighbors,
    features: Features,
    is_second: np.ndarray,
    *,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 1.0,
    order: Order = "similarity",
) -> csr_array:
    """`jaccard_graph` of neighbors that come half from each modality.

    Args:
        halves: (N, k1) nearest rows of the first modality, then of the second, as a `Search` finds
            them with `is_second`.
        features, is_second, k1, k2, order: as in `cluster_jointly`.
        max_distance: as in `jaccard_graph`.

    Returns:
        As `jaccard_graph`.

    Raises:
        ValueError: as `jaccard_graph`; also another word for `order`.

    Reference: BMIL, stage 2, the balanced k-reciprocal Jaccard distance.
    """
    if order not in get_args(Order):
        raise ValueError(f"order is {order!r}; it is one of {', '.join(get_args(Order))}")
    if order == "similarity":
        neighbors = merged_by_similarity(halves)
    else:
        neighbors = alternating(halves, is_second)
    if k2 > 1:
        of_each = np.arange(min(k2, k1 // 2))
        expansion = halves.rows[:, np.concatenate([of_each, k1 // 2 + of_each])]
    else:
        expansion = neighbors.rows[:, :1]
    return jaccard_graph_of_neighbors(
        neighbors, features, k1=k1, k2=k2, max_distance=max_distance, averaged_over=expansion
    )


def dbscan(graph: csr_array, *, eps: float, min_samples: int) -> np.ndarray:
    """DBSCAN on stored distances; an absent entry is no neighbor.

    Labels equal scikit-learn's on the same graph, their order included: clusters are numbered by
    their first core row, and a row at the border of several belongs to the first of them.

    Args:
        graph: (N, N) symmetric distances with a stored diagonal, as `jaccard_graph` gives.
        eps: largest distance between neighbors.
        min_samples: neighbors, itself included, that make a row a core.

    Returns:
        int64 (N,), contiguous from 0; -1 = outlier.

    Raises:
        ValueError: `min_samples` below 1.
    """
    if not min_samples >= 1:
        raise ValueError(f"min_samples is {min_samples}; a row is a neighbor of itself at least")
    labels = np.full(graph.shape[0], OUTLIER, dtype=np.int64)
    _dbscan(graph.indptr, graph.indices, graph.data, float(np.float32(eps)), min_samples, labels)
    return labels


def centroids(
    features: Features, labels: np.ndarray | Tensor, *, rows: np.ndarray | None = None
) -> Features:
    """Mean feature of each cluster, not normalized; summed up in float32 at least.

    Args:
        features: (N, D), array or tensor; the mean is taken where it is, a part of the clusters at
            a time.
        labels: (N,) int64, contiguous from 0; -1 is left out.
        rows: (M,) the row that each label is of, for (M,) labels; None for one label per row.

    Returns:
        (C, D) of the features' kind, device and precision, float32 of whole numbers; (0, D) where
        all rows are outliers.

    Raises:
        ValueError: not one whole number per row, a label below -1, one below the largest without a
            row, or a feature that is not finite.

    Reference: CCLNet, stages 0 and 2, prototypes.
    """
    every = torch.as_tensor(features)
    every = every if every.is_floating_point() else every.float()
    labels = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if "int" not in str(labels.dtype):
        raise ValueError(
            f"labels are no whole numbers but {labels.dtype}: give int64, -1 = outlier"
        )
    names = torch.as_tensor(labels, device=every.device).long()
    num = len(every) if rows is None else len(rows)
    if names.shape != (num,):
        raise ValueError(f"labels have shape {tuple(names.shape)} for {num} rows")
    ordered, order = torch.sort(names, stable=True)
    if len(ordered) and ordered[0] < OUTLIER:
        raise ValueError(f"label {int(ordered[0])}: labels are 0 or above, or -1 for an outlier")
    order, ordered = order[ordered != OUTLIER], ordered[ordered != OUTLIER]
    if len(ordered) and ordered[-1] >= len(ordered):
        raise ValueError(
            f"label {int(ordered[-1])} of {len(ordered)} rows: labels must be contiguous"
        )
    counts = torch.bincount(ordered)
    if not len(counts):
        return every[:0] if isinstance(features, Tensor) else every[:0].numpy()
    if (counts == 0).any():
        raise ValueError(f"label {int(torch.argmin(counts))} has no row: labels must be contiguous")
    if rows is not None:
        order = torch.as_tensor(rows, device=every.device)[order]
    means = _segment_means(every, order, counts)
    if not torch.isfinite(means).all():
        label = int(torch.argmin(torch.isfinite(means).all(dim=1).int()))
        raise ValueError(f"a feature of label {label} is not finite: leave such rows out")
    return means if isinstance(features, Tensor) else means.numpy()


def unit_centroids(features: Features, labels: np.ndarray | Tensor) -> Tensor:
    """`centroids` as float32 unit rows (C, D) on the host, wherever the features are."""
    means = torch.as_tensor(centroids(features, labels), dtype=torch.float32)
    return functional.normalize(means.cpu(), dim=1)


def _segment_means(features: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """(C, D) means of consecutive `counts` rows of features[order].

    Sorted segments and not index_add, whose sums on CUDA differ from run to run.
    """
    most = max(1, _GATHER_BYTES // (4 * features.shape[1]))
    ends = counts.cumsum(0)
    # a cluster belongs to the part that its last row lies in
    sizes = torch.bincount((ends - 1) // most)
    parts, first = [], 0
    for of_part in counts.split(sizes[sizes > 0].tolist()):
        stop = first + int(of_part.sum())
        gathered = features[order[first:stop]]
        # a sum of many rows stalls in half precision
        gathered = gathered.to(torch.promote_types(gathered.dtype, torch.float32))
        means = torch.segment_reduce(gathered, "mean", lengths=of_part, axis=0)
        parts.append(means.to(features.dtype))
        first = stop
    return torch.cat(parts)


@compiled()
def _dbscan(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    eps: float,
    min_samples: int,
    labels: np.ndarray,
) -> None:
    num_rows = len(labels)
    is_core = np.zeros(num_rows, dtype=np.bool_)
    for i in range(num_rows):
        near = 0
        for e in range(indptr[i], indptr[i + 1]):
            near += data[e] <= eps
        is_core[i] = near >= min_samples
    stack = np.empty(num_rows, dtype=np.int64)
    label = 0
    for seed in range(num_rows):
        if labels[seed] != -1 or not is_core[seed]:
            continue
        labels[seed] = label
        stack[0], waiting = seed, 1
        while waiting:
            waiting -= 1
            i = stack[waiting]
            if not is_core[i]:
                continue
            for e in range(indptr[i], indptr[i + 1]):
                j = indices[e]
                if data[e] <= eps and labels[j] == -1:
                    labels[j] = label
                    stack[waiting] = j
                    waiting += 1
        label += 1
