"""Labels that neighbors vote for, and how well a row's own label agrees with the vote.

Shapes: N rows, K neighbors of each, M rows of the pool that the neighbors are in, C clusters.

Reference: N-ULC (Teng et al., "Relieving Universal Label Noise for Unsupervised Visible-Infrared
Person Re-Identification by Inferring from Neighbors", AAAI 2025), in our own words and sparse.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array

from reid_core.types import OUTLIER


def neighbor_votes(neighbors: np.ndarray, pool_labels: np.ndarray) -> csr_array:
    """How a row's neighbors vote: the Jaccard index of its neighborhood and each cluster.

    J_c = h_c / (K - h_c + n_c) with h_c of the K neighbors and n_c of the pool in cluster c; each
    row's J is divided by its sum. A neighbor of -1 takes a place and has no vote.

    Args:
        neighbors: (N, K) rows of the pool, each once; the row itself may be among them.
        pool_labels: (M,) cluster of each row of the pool, contiguous from 0; -1 = outlier.

    Returns:
        float64 (N, C), at most K entries a row, each row of sum 1; an empty row where all
        neighbors are outliers.
    """
    num_rows, num_neighbors = neighbors.shape
    sizes = np.bincount(pool_labels[pool_labels != OUTLIER])
    cast = np.where(neighbors < 0, OUTLIER, pool_labels[neighbors])
    voter, _ = np.nonzero(cast != OUTLIER)
    ballots = coo_array(
        (np.ones(len(voter)), (voter, cast[cast != OUTLIER])), shape=(num_rows, len(sizes))
    )
    counts = csr_array(ballots)  # adds up what stands in one place
    counts.data /= num_neighbors - counts.data + sizes[counts.indices]
    return _rows_of_sum_one(counts)


def confidence(votes: csr_array, labels: np.ndarray, *, sharpness: float) -> np.ndarray:
    """How far a vote confirms a label: exp(-sharpness (1 - votes[i, labels[i]])^2).

    Args:
        votes: (N, C) from `neighbor_votes`.
        labels: (N,) label of each row among the C clusters; -1 = none.
        sharpness: 0 trusts every label alike; 5 and 10 in the reference.

    Returns:
        float64 (N,) in [0, 1]; 0 without a label, and where nobody has voted.
    """
    labeled = np.flatnonzero(labels != OUTLIER)
    agreement = np.zeros(len(labels))
    if len(labeled):  # of no rows SciPy gives a matrix, not numbers
        agreement[labeled] = votes[labeled, labels[labeled]]
    weights = np.exp(-sharpness * (1 - agreement) ** 2)
    return np.where((labels != OUTLIER) & (np.diff(votes.indptr) > 0), weights, 0.0)


def voted_targets(votes: csr_array, labels: np.ndarray, *, hard_share: float) -> csr_array:
    """Soft labels: hard_share on the own label, the rest as the neighbors have voted.

    Args:
        votes, labels: as in `confidence`.
        hard_share: b in [0, 1]; 0.7 in the reference.

    Returns:
        float64 (N, C), rows of sum 1; empty without a label. A row that nobody has voted for has
        its own label alone.
    """
    labeled = np.flatnonzero(labels != OUTLIER)
    voted = np.diff(votes.indptr)[labeled] > 0
    on_own = np.where(voted, hard_share, 1.0)
    own = csr_array(coo_array((on_own, (labeled, labels[labeled])), shape=votes.shape))
    keep = np.where(labels != OUTLIER, 1.0 - hard_share, 0.0)
    scaled = votes.copy()
    scaled.data = scaled.data * np.repeat(keep, np.diff(votes.indptr))
    return _rows_of_sum_one(own + scaled)


def _rows_of_sum_one(matrix: csr_array) -> csr_array:
    """Divides each row by its sum and drops stored zeros."""
    matrix = csr_array(matrix)
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    matrix.data = matrix.data / np.repeat(np.where(sums > 0, sums, 1.0), np.diff(matrix.indptr))
    matrix.eliminate_zeros()
    return matrix
