"""Slow, obvious versions that the fast ones are held against. Plain loops over plain NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nearest(features: np.ndarray, k: int) -> np.ndarray:
    """(N, min(k, N)) nearest rows: the row itself, then by (distance, row)."""
    exact = features.astype(np.float64)
    ranks = []
    for i in range(len(exact)):
        # an element-wise sum, so that equal rows get equal similarities to the last bit
        similarity = (exact * exact[i]).sum(axis=1)
        similarity[i] = np.inf
        ranks.append(np.argsort(-similarity, kind="stable")[:k])
    return np.array(ranks)


def nearest_in_each(features: np.ndarray, is_second: np.ndarray, k: int) -> np.ndarray:
    """(N, k): the k / 2 nearest rows of the first modality, then those of the second."""
    ranks = nearest(features, len(features))
    sides = [[row[is_second[row] == side][: k // 2] for row in ranks] for side in (False, True)]
    return np.concatenate([np.array(side) for side in sides], axis=1)


def merged(features: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Each list's rows in one order: the row itself, then by (similarity falling, row)."""
    exact = features.astype(np.float64)
    return np.array(
        [
            sorted(row, key=lambda j: (j != i, -float((exact[i] * exact[j]).sum()), j))
            for i, row in enumerate(halves.tolist())
        ]
    )


def balanced_distance(
    features: np.ndarray, is_second: np.ndarray, *, k1: int = 30, k2: int = 6
) -> np.ndarray:
    """(N, N) dense float64 balanced Jaccard distance: k1 and k2 rows, half from each modality."""
    halves = nearest_in_each(features, is_second, k1)
    each = halves[:, :k2], halves[:, k1 // 2 : k1 // 2 + min(k2, k1 // 2)]
    expansion = np.concatenate([each[0][:, : k1 // 2], each[1]], axis=1)
    ranks = merged(features, halves)
    if k2 == 1:
        expansion = ranks[:, :1]
    return jaccard_distance(features, k1=k1, ranks=ranks, averaged_over=expansion)


def jaccard_distance(
    features: np.ndarray,
    *,
    k1: int = 30,
    k2: int = 6,
    ranks: np.ndarray | None = None,
    averaged_over: np.ndarray | None = None,
) -> np.ndarray:
    """(N, N) dense float64 k-reciprocal Jaccard distance, row by row from the definition."""
    num_rows = len(features)
    ranks = nearest(features, k1) if ranks is None else ranks
    exact = features.astype(np.float64)

    def reciprocal(i: int, columns: int) -> set[int]:
        return {int(j) for j in ranks[i, :columns] if i in ranks[j, :columns]}

    half = int(np.around(k1 / 2)) + 1
    weights = np.zeros((num_rows, num_rows))
    for i in range(num_rows):
        own = reciprocal(i, k1)
        expanded = set(own)
        for q in own:
            others = reciprocal(q, half)
            if 3 * len(others & own) > 2 * len(others):
                expanded |= others
        members = sorted(expanded)
        raw = np.exp(-(2 - 2 * (exact[members] @ exact[i])))
        weights[i, members] = raw / raw.sum()
    rows = ranks[:, :k2] if averaged_over is None else averaged_over
    averaged = np.stack([weights[rows[i]].mean(axis=0) for i in range(num_rows)])
    shared = np.stack([np.minimum(averaged, row).sum(axis=1) for row in averaged])
    return np.maximum(1 - shared / (2 - shared), 0)


def retrieval(
    similarity: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    ignore: np.ndarray,
    *,
    by_identity: bool,
    max_rank: int,
) -> tuple[np.ndarray, list[float], list[float]]:
    """CMC, and AP and INP of each valid query, one query after the other."""
    curves, aps, inps = [], [], []
    for q, pid in enumerate(query_pids):
        order = np.argsort(-similarity[q], kind="stable")
        ranked = [int(gallery_pids[g]) for g in order if not ignore[q, g]]
        if pid not in ranked:
            continue
        hit_ranks = [rank for rank, other in enumerate(ranked, start=1) if other == pid]
        aps.append(float(np.mean([(n + 1) / rank for n, rank in enumerate(hit_ranks)])))
        inps.append(len(hit_ranks) / hit_ranks[-1])
        listed = list(dict.fromkeys(ranked)) if by_identity else ranked
        first = listed.index(pid)
        curves.append([float(first <= rank) for rank in range(max_rank)])
    return np.mean(curves, axis=0), aps, inps


def update_bank(bank: Tensor, x: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """The momentum update, one row after the other."""
    bank = bank.clone()
    for row, label in zip(x, labels.tolist(), strict=True):
        if label >= 0:
            mixed = momentum * bank[label] + (1 - momentum) * row
            bank[label] = mixed / mixed.norm()
    return bank


def swap_in_batch(
    bank_a: Tensor,
    bank_b: Tensor,
    pairs: np.ndarray,
    labels_a: set[int],
    labels_b: set[int],
    *,
    keep: float,
    alias: bool,
) -> tuple[Tensor, Tensor]:
    """Pair after pair; with `alias` the second line reads what the first has written."""
    new_a, new_b = bank_a.clone(), bank_b.clone()
    for a, b in pairs.tolist():
        if a in labels_a:
            mixed = keep * bank_a[a] + (1 - keep) * bank_b[b]
            new_a[a] = mixed / mixed.norm()
        if b in labels_b:
            mixed = keep * bank_b[b] + (1 - keep) * (new_a if alias else bank_a)[a]
            new_b[b] = mixed / mixed.norm()
    return new_a, new_b


def supervised_contrast(
    a: Tensor, b: Tensor, labels_a: list[int], labels_b: list[int], temperature: float
) -> float:
    """Row by row from the formula."""
    rows = []
    for i, label in enumerate(labels_a):
        scores = torch.stack([(a[i] * b[j]).sum() / temperature for j in range(len(b))])
        log_probability = scores - torch.logsumexp(scores, dim=0)
        positives = [j for j, other in enumerate(labels_b) if other == label and label != -1]
        if positives:
            rows.append(-float(log_probability[positives].mean()))
    return float(np.mean(rows)) if rows else 0.0


def weighted_triplet(x: Tensor, labels: list[int], *, stable: bool) -> float:
    """Row by row; with `stable` false as the public code, shift and 1e-6 included."""
    rows = []
    known = [i for i, label in enumerate(labels) if label != -1]
    for i in known:
        distance = {j: max(float((x[i] - x[j]).square().sum()), 1e-12) ** 0.5 for j in known}
        same = [j for j in known if labels[j] == labels[i]]
        other = [j for j in known if labels[j] != labels[i]]
        if not other:
            continue
        if stable:
            up = np.array([np.exp(distance[j] - max(distance[q] for q in same)) for j in same])
            down = np.array([np.exp(min(distance[q] for q in other) - distance[j]) for j in other])
            up, down = up / up.sum(), down / down.sum()
        else:
            up = np.array([np.exp(distance[j] - max(distance[q] for q in same)) for j in same])
            down = np.array([np.exp(-distance[j]) for j in other])
            up, down = up / (up.sum() + 1e-6), down / (down.sum() + 1e-6)
        furthest = float(np.dot(up, [distance[j] for j in same]))
        closest = float(np.dot(down, [distance[j] for j in other]))
        rows.append(float(np.logaddexp(0, furthest - closest)))
    return float(np.mean(rows)) if rows else 0.0


def votes(
    neighbors: np.ndarray,
    pool_labels: np.ndarray,
    labels: np.ndarray,
    *,
    hard_share: float,
    sharpness: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N-ULC row by row: votes (N, C), targets (N, C), weights (N,)."""
    num_clusters = int(pool_labels.max()) + 1
    cast = np.zeros((len(neighbors), num_clusters))
    targets, weights = cast.copy(), np.zeros(len(neighbors))
    for i, row in enumerate(neighbors):
        for c in range(num_clusters):
            near = int((pool_labels[row] == c).sum())
            cast[i, c] = near / (len(row) - near + int((pool_labels == c).sum())) if near else 0
        total = cast[i].sum()
        if total:
            cast[i] /= total
        if labels[i] < 0:
            continue
        own = np.eye(num_clusters)[labels[i]]
        targets[i] = hard_share * own + (1 - hard_share) * cast[i] if total else own
        weights[i] = np.exp(-sharpness * (1 - cast[i, labels[i]]) ** 2) if total else 0
    return cast, targets, weights


def hybrid_update(
    mean: np.ndarray, hard: np.ndarray, x: np.ndarray, labels: np.ndarray, momentum: float
) -> tuple[np.ndarray, np.ndarray]:
    """Both banks of a hybrid memory, class by class."""
    new_mean, new_hard = mean.copy(), hard.copy()
    for c in range(len(mean)):
        rows = x[labels == c]
        if not len(rows):
            continue
        hardest = rows[int(np.argmin(rows @ mean[c]))]
        for new, old, towards in ((new_mean, mean, rows.mean(axis=0)), (new_hard, hard, hardest)):
            mixed = momentum * old[c] + (1 - momentum) * towards
            new[c] = mixed / np.linalg.norm(mixed)
    return new_mean, new_hard
