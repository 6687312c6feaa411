"""The sparse graph against the dense definition, DBSCAN against scikit-learn, centroids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.cluster import DBSCAN

from reid_core import clustering
from reid_core.knn import search
from tests import oracles


def identities(num_rows: int, num_identities: int, noise: float, *, width: int = 16, seed: int = 0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_identities, width))
    x = centers[rng.integers(0, num_identities, size=num_rows)]
    x = x + noise * rng.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def stored(graph: csr_array) -> np.ndarray:
    """Dense with 1 where nothing is stored."""
    dense = np.ones(graph.shape)
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    dense[rows, graph.indices] = graph.data
    return dense


def assert_well_formed(graph: csr_array) -> None:
    assert graph.has_canonical_format
    assert (graph.diagonal() == 0).all()
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    assert (rows == graph.indices).sum() == graph.shape[0]
    assert (stored(graph) == stored(graph).T).all()


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(1, 80),
    num_identities=st.integers(1, 12),
    noise=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    k1=st.integers(1, 35),
    k2=st.integers(1, 8),
    max_distance=st.sampled_from([1.0, 0.9, 0.6, 0.3, 0.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_dense_definition(
    num_rows, num_identities, noise, k1, k2, max_distance, seed
) -> None:
    """Also N < k1, k1 < k2, N = 1, and (noise 0) rows that are equal to the last bit."""
    x = identities(num_rows, num_identities, noise, seed=seed)
    graph = clustering.jaccard_graph(x, k1=k1, k2=k2, max_distance=max_distance)
    assert_well_formed(graph)
    dense = oracles.jaccard_distance(x, k1=k1, k2=k2)
    remaining = stored(graph) < 1
    np.testing.assert_allclose(stored(graph)[remaining], dense[remaining], atol=1e-5)
    assert (dense[remaining] <= max_distance + 1e-5).all()
    assert remaining[dense < max_distance - 1e-5].all()


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.3, 0.8, 3.0])
def test_larger_world_equals_the_dense_definition(noise: float) -> None:
    x = identities(400, 40, noise, width=32)
    dense = oracles.jaccard_distance(x)
    np.testing.assert_allclose(stored(clustering.jaccard_graph(x)), dense, atol=1e-5)
    near = clustering.jaccard_graph(x, max_distance=0.6)
    np.testing.assert_array_equal(stored(near) < 1, dense <= 0.6)
    labels = clustering.cluster(x)
    expected = DBSCAN(eps=0.6, min_samples=4, metric="precomputed").fit_predict(dense)
    np.testing.assert_array_equal(labels, expected)


def test_hundreds_of_equal_rows_in_a_few_groups() -> None:
    """More copies than k1: reciprocity holds only among the lowest rows of a group."""
    x = identities(5, 5, 0.0)[np.random.default_rng(0).integers(0, 5, size=300)]
    graph = clustering.jaccard_graph(x, k1=20)
    np.testing.assert_allclose(stored(graph), oracles.jaccard_distance(x, k1=20), atol=1e-5)


def test_the_half_set_uses_numpy_rounding() -> None:
    """k1 = 5: round(2.5) is 2 in NumPy, so the half set has 3 columns and not 4."""
    x = identities(60, 6, 0.7, width=4)
    graph = clustering.jaccard_graph(x, k1=5, k2=1)
    np.testing.assert_allclose(stored(graph), oracles.jaccard_distance(x, k1=5, k2=1), atol=1e-5)


def test_threads_blocks_and_tensors_change_no_bit() -> None:
    x = identities(1500, 100, 0.6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = clustering.jaccard_graph(x, max_distance=0.6)
        torch.set_num_threads(3)
        three = clustering.jaccard_graph(torch.from_numpy(x), max_distance=0.6)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(one.data, three.data)
    np.testing.assert_array_equal(one.indices, three.indices)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),
        lambda x: torch.from_numpy(x).half(),
        lambda x: torch.from_numpy(x).bfloat16(),
        lambda x: torch.from_numpy(x).requires_grad_(),
    ],
)
def test_other_precisions_and_gradients_are_their_float32_values(convert) -> None:
    x, is_second = convert(identities(200, 20, 0.5)), np.arange(200) % 2 == 0
    plain = torch.as_tensor(x).detach().float().numpy()
    for result, expected in (
        (clustering.jaccard_graph(x, k1=10).data, clustering.jaccard_graph(plain, k1=10).data),
        (clustering.cluster(x, k1=10), clustering.cluster(plain, k1=10)),
        (
            clustering.cluster_jointly(x, is_second, k1=10),
            clustering.cluster_jointly(plain, is_second, k1=10),
        ),
    ):
        np.testing.assert_array_equal(result, expected)


def test_settings_out_of_range_are_named() -> None:
    x = identities(10, 2, 0.1)
    with pytest.raises(ValueError, match="k2 is 0"):
        clustering.jaccard_graph(x, k2=0)
    with pytest.raises(ValueError, match=r"shape \(10, 5\) do not fit 10 rows and k1=6"):
        clustering.jaccard_graph_of_neighbors(search.nearest(x, 5), x, k1=6)
    with pytest.raises(ValueError, match=r"max_distance is 1\.5"):
        clustering.jaccard_graph(x, max_distance=1.5)
    x[3] = 0
    with pytest.raises(ValueError, match="row 3 is zero"):
        clustering.cluster(x)


def test_clear_identities_become_clusters_and_a_stranger_an_outlier() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(6, 64)), 20, axis=0) + 0.2 * rng.normal(size=(120, 64))
    x = np.concatenate([x, rng.normal(size=(1, 64))])
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    labels = clustering.cluster(x, k1=20, k2=1)
    assert labels.tolist() == [*np.repeat(np.arange(6), 20), -1]


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    density=st.floats(0, 0.4),
    min_samples=st.integers(1, 6),
    eps=st.sampled_from([0.1, 0.3, 0.6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_dbscan_equals_scikit_learn(num_rows, density, min_samples, eps, seed) -> None:
    rng = np.random.default_rng(seed)
    distance = rng.integers(0, 10, size=(num_rows, num_rows)).astype(np.float32) / 10
    distance[rng.random(distance.shape) > density] = 1
    distance = np.minimum(distance, distance.T)
    np.fill_diagonal(distance, 0)
    rows, columns = np.nonzero(distance < 1)
    graph = csr_array((distance[rows, columns], (rows, columns)), shape=distance.shape)
    labels = clustering.dbscan(graph, eps=eps, min_samples=min_samples)
    expected = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)
    np.testing.assert_array_equal(labels, expected)


def test_joint_clusters_reach_across_a_modality_gap() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(12, 64)), 40, axis=0) + 0.3 * rng.normal(size=(480, 64))
    is_second = np.tile(np.arange(40) % 2 == 1, 12)
    x[is_second] += 1.2 * rng.normal(size=64)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    together = clustering.cluster_jointly(x, is_second).reshape(12, 40)
    assert (together == together[:, :1]).all()
    assert len(np.unique(together)) == 12
    alone = clustering.cluster(x).reshape(12, 40)
    assert all(len(set(row[0::2]) & set(row[1::2])) == 0 for row in alone)


def test_graph_of_lists_that_are_filled_up_equals_the_definition() -> None:
    """Ten rows share a cell: their lists of 16 hold the row itself seven times."""
    x = identities(50, 5, 0.5)
    result = search.nearest(x, 16)
    short = np.arange(10)
    result.rows[short] = np.concatenate(
        [oracles.nearest(x[:10], 10), np.repeat(short[:, None], 6, axis=1)], axis=1
    )
    result.similarity[short] = (x[short, None] * x[result.rows[short]]).sum(axis=2)
    graph = clustering.jaccard_graph_of_neighbors(result, x, k1=16)
    dense = oracles.jaccard_distance(x, k1=16, ranks=result.rows)
    np.testing.assert_allclose(stored(graph), dense, atol=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_centroids_are_means_of_members(kind) -> None:
    x = identities(30, 5, 0.5)
    labels = np.array([2, -1, 0, 1, 2] * 6)
    result = clustering.centroids(kind(x), labels)
    assert type(result) is type(kind(x))
    expected = [x[labels == label].mean(axis=0) for label in range(3)]
    np.testing.assert_allclose(np.asarray(result), expected, atol=1e-6)


def test_centroids_of_outliers_only_and_of_labels_with_a_hole() -> None:
    x = identities(4, 2, 0.5)
    assert clustering.centroids(x, np.full(4, -1)).shape == (0, 16)
    with pytest.raises(ValueError, match="label 1 has no row"):
        clustering.centroids(x, np.array([0, 2, 2, -1]))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_centroids_need_one_label_per_row_and_none_below_an_outliers(kind) -> None:
    x = kind(identities(4, 2, 0.5))
    with pytest.raises(ValueError, match=r"shape \(3,\) for 4 rows"):
        clustering.centroids(x, kind(np.array([0, 1, 1])))
    with pytest.raises(ValueError, match="label -2: labels are 0"):
        clustering.centroids(x, kind(np.array([0, -1, 1, -2])))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_centroids_of_thousands_of_rows_in_half_precision(kind: torch.dtype) -> None:
    row = torch.tensor([[0.75, 0.5, -0.25, 0.375]], dtype=kind)  # exact in both
    labels = np.zeros(5000, dtype=np.int64)
    result = clustering.centroids(row.repeat(5000, 1), labels)
    assert result.dtype == kind
    assert torch.equal(result, row)


def test_centroids_take_whole_numbers_and_short_labels() -> None:
    x = np.array([[2, 4], [4, 4], [1, 0]])
    for labels in (np.uint8, np.uint16, np.int32):
        result = clustering.centroids(x, np.array([0, 0, 1], dtype=labels))
        assert result.tolist() == [[3, 4], [1, 0]]


def test_another_order_of_the_balanced_graph_is_refused() -> None:
    x = torch.from_numpy(identities(12, 2, 0.1))
    with pytest.raises(ValueError, match="order is 'random'; it is one of similarity, alternating"):
        clustering.cluster_jointly(x, np.arange(12) % 2 == 1, k1=4, order="random")  # type: ignore[arg-type]
