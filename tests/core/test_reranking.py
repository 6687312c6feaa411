"""Re-ranking against the published algorithm written with dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core.reranking import rerank


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def identities(num: int, images: int, *, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 16) unit rows around a center per identity, and the identities."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(num), images)
    centers = rng.normal(size=(num, 16))
    return unit(centers[pids] + noise * rng.normal(size=(len(pids), 16))), pids


def dense_rerank(
    queries: np.ndarray, gallery: np.ndarray, k1: int, k2: int, original: float
) -> np.ndarray:
    """The paper, row by row: every step is an N x N matrix."""
    rows = np.concatenate([queries, gallery]).astype(np.float64)
    num = len(rows)
    squared = 2 - 2 * rows @ rows.T
    distance = squared / squared.max(axis=1, keepdims=True)
    order_by = squared.copy()
    np.fill_diagonal(order_by, -1)
    rank = np.argsort(order_by, axis=1, kind="stable")

    def reciprocal(i: int, k: int) -> set[int]:
        return {int(j) for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    weights = np.zeros((num, num))
    for i in range(num):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            half = reciprocal(j, int(np.around(k1 / 2)))
            if len(half & own) > 2 / 3 * len(half):
                expanded |= half
        members = sorted(expanded)
        weights[i, members] = np.exp(-distance[i, members])
        weights[i] /= weights[i].sum()
    if k2 > 1:
        weights = np.stack([weights[rank[i, :k2]].mean(axis=0) for i in range(num)])
    count = len(queries)
    jaccard = np.empty((count, num - count))
    for q in range(count):
        for g in range(num - count):
            shared = np.minimum(weights[q], weights[count + g]).sum()
            jaccard[q, g] = 1 - shared / (2 - shared)
    return (1 - original) * jaccard + original * distance[:count, count:]


@pytest.mark.parametrize(
    ("k1", "k2", "original"), [(20, 6, 0.3), (7, 1, 0.0), (6, 3, 1.0), (5, 2, 0.5)]
)
def test_equals_the_dense_algorithm(k1: int, k2: int, original: float) -> None:
    rows, _ = identities(9, 8, noise=0.8, seed=3)
    queries, gallery = rows[::4], np.delete(rows, np.s_[::4], axis=0)
    expected = dense_rerank(queries, gallery, k1, k2, original)
    result = rerank(queries, gallery, k1=k1, k2=k2, original=original)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_only_the_original_distance_keeps_the_order() -> None:
    rows, _ = identities(5, 4, noise=1.0, seed=0)
    result = rerank(rows[:5], rows[5:], k1=4, k2=2, original=1.0)
    similarity = rows[:5] @ rows[5:].T
    np.testing.assert_array_equal(np.argsort(result, axis=1), np.argsort(-similarity, axis=1))


def test_shared_neighbors_lift_the_right_rows() -> None:
    """Mean average precision rises where an identity has many images and noise is large."""
    rows, pids = identities(12, 12, noise=1.3, seed=1)
    query = np.arange(0, len(rows), 12)
    gallery = np.setdiff1d(np.arange(len(rows)), query)
    right = pids[query][:, None] == pids[gallery][None]

    def mean_ap(distance: np.ndarray) -> float:
        hits = np.take_along_axis(right, np.argsort(distance, axis=1), axis=1)
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        return float(((precision * hits).sum(axis=1) / hits.sum(axis=1)).mean())

    before = mean_ap(-rows[query] @ rows[gallery].T)
    assert mean_ap(rerank(rows[query], rows[gallery], k1=10, k2=4)) > before + 0.03


def test_fewer_rows_than_neighbors_asked_for() -> None:
    rows, _ = identities(3, 1, noise=0.5, seed=2)
    result = rerank(rows[:1], rows[1:])
    np.testing.assert_allclose(result, dense_rerank(rows[:1], rows[1:], 2, 6, 0.3), atol=2e-5)


def test_equal_rows_are_as_near_as_can_be() -> None:
    rows, _ = identities(4, 3, noise=0.7, seed=4)
    result = rerank(rows[:1], np.concatenate([rows[:1], rows[1:]]), k1=4, k2=2)
    assert result.argmin() == 0
    assert result[0, 0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": 3, "k2": 4}, "1 <= k2 <= k1"),
        ({"original": 1.5}, "from 0 to 1"),
    ],
)
def test_settings_without_meaning(settings: dict, message: str) -> None:
    rows, _ = identities(2, 2, noise=0.5, seed=0)
    with pytest.raises(ValueError, match=message):
        rerank(rows[:1], rows[1:], **settings)


def test_rows_that_are_not_unit_are_named() -> None:
    with pytest.raises(ValueError, match="normalize"):
        rerank(np.ones((1, 4), np.float32), np.ones((3, 4), np.float32))


def test_rows_that_are_almost_equal_have_finite_distances():
    rows = np.ones((40, 8), dtype=np.float32) + 1e-6 * np.random.default_rng(0).random((40, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    assert np.isfinite(rerank(rows[:10], rows[10:])).all()
