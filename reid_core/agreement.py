"""How far clusters and their matches agree with identities, or with an earlier clustering.

Diagnostics alone: nothing here decides anything about training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from reid_core.types import OUTLIER


@dataclass(frozen=True)
class ClusteringAgreement:
    """How well clusters follow the true identities, over the rows that are no outliers.

    Attributes:
        ari: adjusted Rand index, 1 = same partition, about 0 = chance.
        purity: share of rows whose identity is the most frequent one of their cluster.
    """

    ari: float
    purity: float


def clustering_agreement(labels: np.ndarray, truth: np.ndarray) -> ClusteringAgreement:
    """Agreement of pseudo labels with true identities; a diagnostic, never used in training.

    Args:
        labels: (N,) int64 pseudo labels; rows of -1 are left out.
        truth: (N,) int64 identities; rows of -1 (unknown) are left out.

    Returns:
        ARI and purity over the remaining rows, NaN where none remains.
    """
    remaining = (labels != OUTLIER) & (truth != OUTLIER)
    if not remaining.any():
        return ClusteringAgreement(ari=float("nan"), purity=float("nan"))
    counts = _contingency(labels[remaining], truth[remaining])
    return ClusteringAgreement(
        ari=_adjusted_rand_index(truth[remaining], labels[remaining]),
        purity=float(counts[:, 2][_majority(counts)].sum() / remaining.sum()),
    )


def clustering_stability(before: np.ndarray, after: np.ndarray) -> float:
    """How much of a clustering is still there an epoch later; needs no identity.

    The adjusted Rand index over the rows that are in clusters both times, times their share of all
    rows: otherwise a clustering would gain by leaving rows out. It says that training has settled,
    not that it is right: an encoder that does not change at all reaches 1.

    Args:
        before, after: (N,) int64 labels of the same rows; -1 = outlier.

    Returns:
        1 for the same clusters without outliers, about 0 for unrelated ones; 0 where either time
        the rows are in fewer than two clusters, which tell nothing apart.

    Reference: ours.
    """
    remaining = (before != OUTLIER) & (after != OUTLIER)
    if min(len(np.unique(before[remaining])), len(np.unique(after[remaining]))) < 2:
        return 0.0
    return _adjusted_rand_index(before[remaining], after[remaining]) * float(remaining.mean())


def matching_accuracy(
    pairs: np.ndarray,
    labels_a: np.ndarray,
    truth_a: np.ndarray,
    labels_b: np.ndarray,
    truth_b: np.ndarray,
) -> float:
    """Share of matched cluster pairs whose most frequent identities agree; a diagnostic.

    Args:
        pairs: (M, 2) cluster of side a, cluster of side b.
        labels_a, truth_a: (N_a,) pseudo labels and identities of side a.
        labels_b, truth_b: (N_b,) the same of side b.

    Returns:
        In [0, 1]. Of equally frequent identities the smallest id counts. Rows of -1 (unknown) are
        left out, and pairs with a cluster of nothing else; NaN where no pair remains.
    """
    found_a = _majority_identity(labels_a, truth_a)[pairs[:, 0]]
    found_b = _majority_identity(labels_b, truth_b)[pairs[:, 1]]
    known = (found_a != OUTLIER) & (found_b != OUTLIER)
    return float((found_a == found_b)[known].mean()) if known.any() else float("nan")


@dataclass(frozen=True)
class AssociationAgreement:
    """How right it is to draw images of two modalities together, over pairs of a row of each.

    Attributes:
        precision: of the pairs that are drawn together, the share of one identity.
        recall: of the pairs of one identity, the share that is drawn together.
    """

    precision: float
    recall: float


def association_agreement(
    pairs: np.ndarray,
    labels_a: np.ndarray,
    truth_a: np.ndarray,
    labels_b: np.ndarray,
    truth_b: np.ndarray,
) -> AssociationAgreement:
    """Agreement of matched, or joint, clusters with true identities; a diagnostic.

    Args:
        pairs: (M, 2) cluster of side a, cluster of side b; a pair counts once.
        labels_a, truth_a: (N_a,) pseudo labels and identities of side a; -1 = outlier, unknown.
        labels_b, truth_b: (N_b,) the same of side b.

    Returns:
        In [0, 1]; rows of unknown identity are left out, outliers only of what is drawn together.
        NaN where there is no pair of rows to take a share of.
    """
    truth_a, truth_b, num_identities = _renumbered(truth_a, truth_b)
    pairs = np.unique(pairs, axis=0)
    sides = []
    for column, labels, truth in ((0, labels_a, truth_a), (1, labels_b, truth_b)):
        num_clusters = 1 + int(max(labels.max(initial=OUTLIER), pairs[:, column].max(initial=-1)))
        of_cluster = _counts(labels, truth, (num_clusters, num_identities))
        sides.append(of_cluster[pairs[:, column]])
    right = float(sides[0].multiply(sides[1]).sum())
    together = float((sides[0].sum(axis=1) * sides[1].sum(axis=1)).sum())
    of_one = float(
        (
            np.bincount(truth_a[truth_a != OUTLIER], minlength=num_identities).astype(float)
            * np.bincount(truth_b[truth_b != OUTLIER], minlength=num_identities)
        ).sum()
    )
    return AssociationAgreement(
        precision=right / together if together else float("nan"),
        recall=right / of_one if of_one else float("nan"),
    )


def _renumbered(truth_a: np.ndarray, truth_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Identities of both sides from 0 on, since numbers may be large; -1 stays; and how many."""
    names, numbers = np.unique(np.concatenate([truth_a, truth_b]), return_inverse=True)
    numbers -= int(names.min(initial=0) == OUTLIER)
    num_identities = 1 + int(numbers.max(initial=OUTLIER))
    return numbers[: len(truth_a)], numbers[len(truth_a) :], num_identities


def _counts(labels: np.ndarray, truth: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """(C, identities) rows of each cluster and identity, those of -1 left out."""
    remaining = (labels != OUTLIER) & (truth != OUTLIER)
    ones = np.ones(int(remaining.sum()))
    return csr_array(coo_array((ones, (labels[remaining], truth[remaining])), shape=shape))


def _contingency(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rows (label, identity, count), sorted by label, then identity."""
    pairs, counts = np.unique(np.stack([labels, truth], axis=1), axis=0, return_counts=True)
    return np.concatenate([pairs, counts[:, None]], axis=1)


def _majority(counts: np.ndarray) -> np.ndarray:
    """Index of each label's largest count in a contingency table (the first of equals)."""
    order = np.lexsort((-counts[:, 2], counts[:, 0]))
    return order[np.unique(counts[order, 0], return_index=True)[1]]


def _majority_identity(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(C,) most frequent known identity of each cluster, -1 where none is known."""
    majority = np.full(labels.max(initial=OUTLIER) + 1, OUTLIER, dtype=np.int64)
    remaining = (labels != OUTLIER) & (truth != OUTLIER)
    counts = _contingency(labels[remaining], truth[remaining])
    best = counts[_majority(counts)]
    majority[best[:, 0]] = best[:, 1]
    return majority


def _adjusted_rand_index(a: np.ndarray, b: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score  # its package takes a second

    return float(adjusted_rand_score(a, b))
