"""One clustering over two modalities: against the dense definition, by hand, and its memory."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from reid_core import clustering
from reid_core.jaccard import distances
from reid_core.knn import search
from reid_core.knn.neighbors import Neighbors
from tests import oracles


def world(num_first: int, num_second: int, gap: float, *, seed: int = 0):
    """Identities of both modalities with a shift between them: features and mask."""
    rng = np.random.default_rng(seed)
    num = num_first + num_second
    centers = rng.normal(size=(12, 24))
    x = centers[rng.integers(0, 12, size=num)] + 0.5 * rng.normal(size=(num, 24))
    is_second = np.arange(num) >= num_first
    x[is_second] += gap * rng.normal(size=24)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), is_second


def dense(x: np.ndarray, is_second: np.ndarray, k1: int, k2: int) -> np.ndarray:
    halves = search.nearest(x, k1, is_second=is_second)
    graph = clustering.balanced_graph(halves, x, is_second, k1=k1, k2=k2)
    filled = np.ones(graph.shape)
    filled[np.repeat(np.arange(len(x)), np.diff(graph.indptr)), graph.indices] = graph.data
    return filled


@pytest.mark.parametrize(
    ("num_first", "num_second", "gap", "k1", "k2"),
    [
        (130, 70, 0.0, 30, 6),
        (130, 70, 1.0, 30, 6),
        (60, 140, 2.5, 20, 4),
        (100, 100, 1.0, 30, 1),
        (100, 60, 1.0, 2, 6),
        (100, 60, 1.0, 6, 3),
    ],
)
def test_balanced_graph_equals_the_dense_definition(num_first, num_second, gap, k1, k2) -> None:
    x, is_second = world(num_first, num_second, gap)
    expected = oracles.balanced_distance(x, is_second, k1=k1, k2=k2)
    np.testing.assert_allclose(dense(x, is_second, k1, k2), expected, atol=1e-6)
    for eps in (0.4, 0.6):
        labels = clustering.cluster_jointly(x, is_second, k1=k1, k2=k2, eps=eps)
        rival = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit_predict(expected)
        np.testing.assert_array_equal(labels, rival)


def test_the_modalities_are_alike_and_rows_have_no_order() -> None:
    x, is_second = world(90, 60, 1.0)
    graph = dense(x, is_second, 20, 6)
    np.testing.assert_allclose(dense(x, ~is_second, 20, 6), graph, atol=1e-6)
    order = np.random.default_rng(2).permutation(150)
    permuted = dense(x[order], is_second[order], 20, 6)
    np.testing.assert_allclose(permuted, graph[order][:, order], atol=1e-6)


def test_twelve_rows_by_hand() -> None:
    """2 identities x 2 modalities x 3 images: 1 for the identity, 2 for the modality, .3 each."""
    x = np.zeros((12, 16))
    is_second = np.arange(12) >= 6
    for i in range(12):
        x[i, (i // 3) % 2], x[i, 2 + i // 6], x[i, 4 + i] = 1, 2, 0.3
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    halves = search.nearest(x, 6, is_second=is_second)
    assert halves.rows[0].tolist() == [0, 1, 2, 6, 7, 8]
    settings = {"k1": 6, "k2": 3, "eps": 0.6, "min_samples": 3}
    labels = clustering.cluster_jointly(x, is_second, **settings)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert clustering.cluster(x, **settings).tolist() == [0] * 6 + [1] * 6


def test_without_the_balance_it_is_the_plain_clustering() -> None:
    x, is_second = world(130, 70, 1.0)
    labels = clustering.cluster_jointly(x, is_second, k1=12, balanced=False)
    np.testing.assert_array_equal(labels, clustering.cluster(x, k1=12))


def test_a_modality_that_is_empty_or_small_is_named() -> None:
    x, is_second = world(50, 5, 1.0)
    with pytest.raises(ValueError, match=r"second modality.*k1=20 takes 10 of each: lower k1"):
        clustering.cluster_jointly(x, is_second, k1=20)
    with pytest.raises(ValueError, match=r"second modality.*55 and 0"):
        clustering.cluster_jointly(x, np.zeros(55, dtype=bool), k1=20)


def test_the_search_that_is_given_is_asked_for_both_modalities() -> None:
    x, is_second = world(130, 70, 1.0)
    asked = []

    def spread(features, k, /, *, is_second=None) -> Neighbors:
        asked.append((k, is_second is not None))
        blocks = search.open_search(features, k, is_second=is_second)
        return blocks.join([blocks.run(block) for block in range(blocks.num_blocks)])

    labels = clustering.cluster_jointly(x, is_second, search=spread)
    np.testing.assert_array_equal(labels, clustering.cluster_jointly(x, is_second))
    assert asked == [(30, True)]


def test_stored_entries_grow_with_the_rows_and_not_with_their_square(monkeypatch) -> None:
    entries = []
    original = distances.jaccard_distances

    def counted(weights, *, max_distance):
        graph = original(weights, max_distance=max_distance)
        entries.append(len(weights.columns) + graph.nnz)
        return graph

    monkeypatch.setattr(clustering, "jaccard_distances", counted)
    for num in (600, 2400):
        rng = np.random.default_rng(0)  # as many rows of an identity in the larger world
        x = np.repeat(rng.normal(size=(num // 20, 32)), 20, axis=0)
        x = x + 0.4 * rng.normal(size=x.shape)
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        clustering.cluster_jointly(x, np.arange(num) % 2 == 1, k1=12)
    assert entries[1] < 5 * entries[0]
    assert entries[1] < 2400 * 12 * 12
