"""The search by a graph: what it finds is ordered as by the exact one, and its recall is true."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core.knn import approximate
from reid_core.knn.approximate import GraphSearch, recall_of
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.search import nearest
from tests.core.knn.test_search import assert_same
from tests.core.rows import unit


def rows() -> np.ndarray:
    x = np.repeat(unit(100, 32), 10, axis=0) + 0.1 * np.random.default_rng(1).normal(
        size=(1000, 32)
    )
    x[900:] = x[:100]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("halves", [False, True])
def test_where_nothing_is_missed_it_is_the_exact_search(
    monkeypatch: pytest.MonkeyPatch, halves: bool
) -> None:
    monkeypatch.setattr(approximate, "_FEW_ROWS", 10)
    is_second = np.arange(1000) % 3 == 0 if halves else None
    search = GraphSearch()
    result = search(rows(), 12, is_second=is_second)
    exact = nearest(rows(), 12, is_second=is_second)
    assert search.recalls == [1.0]
    assert_same(result, exact)


def test_a_poor_graph_misses_neighbors_and_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """500 rows in random directions: each is asked for, and no two products are equal."""
    for name, value in {
        "_FEW_ROWS": 10,
        "_LINKS": 2,
        "_BUILD_WIDTH": 2,
        "_SEARCH_WIDTH": 1,
    }.items():
        monkeypatch.setattr(approximate, name, value)
    x, search = unit(500, 32), GraphSearch()
    result, exact = search(x, 12), nearest(x, 12)
    both = [len(set(a) & set(b)) for a, b in zip(result.rows, exact.rows, strict=True)]
    (recall,) = search.recalls
    assert recall == pytest.approx(sum(both) / exact.rows.size)
    assert 0.1 < recall < 0.98


def test_the_recall_is_the_share_of_neighbors_that_were_found() -> None:
    x = unit(300, 32)
    exact = nearest(x, 10)
    similarity = exact.similarity.copy()
    similarity[:, 7:] = -1  # three of ten are others
    assert recall_of(exact, x) == 1
    assert recall_of(Neighbors(exact.rows, similarity), x) == pytest.approx(0.7)
    is_second = np.arange(300) < 100
    both = nearest(x, 10, is_second=is_second)
    similarity = both.similarity.copy()
    similarity[:, 9] = -1
    assert recall_of(Neighbors(both.rows, similarity), x, is_second=is_second) == 0.9


def test_few_rows_are_searched_exactly() -> None:
    assert_same(GraphSearch()(rows(), 12), nearest(rows(), 12))


def test_without_faiss_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "faiss", None)
    with pytest.raises(ValueError, match=r'approximate needs faiss: pip install -e ".\[cpu\]"'):
        GraphSearch()(rows(), 12)
