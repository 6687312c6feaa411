"""Votes of neighbors: by hand, at the edges, and against loops over dense arrays."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core import votes
from tests import oracles


def test_four_neighbors_by_hand() -> None:
    """Clusters of 3 and 5 rows; the neighbors are in 0, 0, 1 and none."""
    pool = np.array([0, 0, 0, 1, 1, 1, 1, 1, -1])
    cast = votes.neighbor_votes(np.array([[0, 1, 3, 8]]), pool)
    np.testing.assert_allclose(cast.toarray(), [[0.761905, 0.238095]], atol=1e-6)
    label = np.array([0])
    np.testing.assert_allclose(votes.confidence(cast, label, sharpness=10), [0.567285], atol=1e-6)
    targets = votes.voted_targets(cast, label, hard_share=0.7)
    np.testing.assert_allclose(targets.toarray(), [[0.928571, 0.071429]], atol=1e-6)


def test_all_neighbors_of_the_own_cluster_confirm_the_label() -> None:
    pool = np.array([0, 0, 0, 1])
    cast = votes.neighbor_votes(np.array([[0, 1, 2]]), pool)
    assert cast.toarray().tolist() == [[1, 0]]
    assert votes.confidence(cast, np.array([0]), sharpness=10).tolist() == [1]
    assert votes.voted_targets(cast, np.array([0]), hard_share=0.5).toarray().tolist() == [[1, 0]]


def test_outliers_have_no_vote_and_no_weight_and_nothing_is_nan() -> None:
    pool = np.array([0, 1, -1, -1])
    cast = votes.neighbor_votes(np.array([[2, 3], [0, 2], [1, 3]]), pool)
    labels = np.array([0, 0, -1])
    weights = votes.confidence(cast, labels, sharpness=10)
    assert weights.tolist() == [0, 1, 0]
    targets = votes.voted_targets(cast, labels, hard_share=0.7).toarray()
    assert targets.tolist() == [[1, 0], [1, 0], [0, 0]]
    assert votes.confidence(cast, np.full(3, -1), sharpness=10).tolist() == [0, 0, 0]


def test_a_trusting_vote_keeps_hard_labels() -> None:
    rng = np.random.default_rng(0)
    pool, neighbors = rng.integers(-1, 6, size=80), rng.integers(0, 80, size=(80, 9))
    cast = votes.neighbor_votes(neighbors, np.maximum(pool, 0))
    labels = np.maximum(pool, 0)
    assert (votes.confidence(cast, labels, sharpness=0) == 1).all()
    hard = votes.voted_targets(cast, labels, hard_share=1).toarray()
    np.testing.assert_array_equal(hard, np.eye(cast.shape[1])[labels])


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_loops_over_dense_arrays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 7, size=60)
    neighbors = np.array([rng.permutation(60)[:8] for _ in range(60)])
    cast, targets, weights = oracles.votes(neighbors, labels, labels, hard_share=0.7, sharpness=5)
    ours = votes.neighbor_votes(neighbors, labels)
    np.testing.assert_allclose(ours.toarray(), cast, atol=1e-12)
    np.testing.assert_allclose(
        votes.voted_targets(ours, labels, hard_share=0.7).toarray(), targets, atol=1e-12
    )
    np.testing.assert_allclose(votes.confidence(ours, labels, sharpness=5), weights, atol=1e-12)


def test_renamed_clusters_and_permuted_rows_permute_the_votes() -> None:
    rng = np.random.default_rng(3)
    labels, neighbors = rng.integers(-1, 5, size=40), rng.integers(0, 40, size=(40, 6))
    plain = votes.neighbor_votes(neighbors, labels).toarray()
    names = rng.permutation(5)
    renamed = votes.neighbor_votes(neighbors, np.where(labels < 0, -1, names[labels])).toarray()
    np.testing.assert_allclose(renamed[:, names], plain)
    order = rng.permutation(40)
    np.testing.assert_allclose(
        votes.neighbor_votes(neighbors[order], labels).toarray(), plain[order]
    )


def test_wrong_labels_are_trusted_far_less() -> None:
    """Tight clusters, a tenth of whose labels are replaced at random."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(30), 12)
    near = np.array([rng.permutation(np.flatnonzero(truth == y))[:10] for y in truth])
    labels = np.where(rng.random(360) < 0.1, rng.integers(0, 30, size=360), truth)
    weights = votes.confidence(votes.neighbor_votes(near, labels), labels, sharpness=10)
    assert weights[labels != truth].mean() < 0.1 * weights[labels == truth].mean()


def test_a_row_without_a_vote_keeps_its_own_label_whatever_the_share() -> None:
    """Its only neighbor is an outlier; a neighbor of -1 is none."""
    cast = votes.neighbor_votes(np.array([[0, 1], [2, 2], [-1, 2]]), np.array([0, 0, -1]))
    for hard_share in (0.0, 0.7):
        targets = votes.voted_targets(cast, np.array([0, 0, 0]), hard_share=hard_share)
        np.testing.assert_allclose(targets.toarray(), [[1], [1], [1]])
