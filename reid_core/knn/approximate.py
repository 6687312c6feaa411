"""Nearest neighbors by a navigable graph: most of them, and a measured share of how many.

The exact search multiplies all pairs. A graph (HNSW, Malkov and Yashunin, TPAMI 2020, as faiss has
it) looks at a few hundred rows for each, but takes longer to build than narrow rows to multiply: up
to a million rows of 64 numbers it gained nothing (docs/scaling.md). Products, order and equal rows
are treated as by the exact search; only candidates may be missed.

Shapes: N rows, D feature width, k neighbors. A graph takes 4 D + 270 bytes a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reid_core.knn import products
from reid_core.knn.certified import single_error
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.products import Candidates, Features, on_host
from reid_core.knn.search import open_search

try:
    import faiss
except ImportError:
    faiss = None  # type: ignore[assignment]

_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 100, 200
_FEW_ROWS = 4096  # searched exactly
_ASKED = 500  # rows whose exact neighbors tell the recall


class GraphSearch:
    """A `neighbors.Search` that may miss neighbors, on the CPU wherever the features are.

    Threads build the graph together, so two runs need not find the same.

    Attributes:
        recalls: of each search so far, the share of a sample's neighbors that were found.
    """

    def __init__(self) -> None:
        self.recalls: list[float] = []

    def __call__(
        self, features: Features, k: int, /, *, is_second: np.ndarray | None = None
    ) -> Neighbors:
        """See `neighbors.Search`.

        Raises:
            ValueError: as `search.nearest`; without faiss.
        """
        if faiss is None:
            raise ValueError('trainer.search=approximate needs faiss: pip install -e ".[cpu]"')
        rows = on_host(features)
        search = open_search(rows, k, is_second=is_second, propose=_Graphs().propose)
        result = search.join([search.run(block) for block in range(search.num_blocks)])
        self.recalls.append(recall_of(result, rows, is_second=is_second))
        return result


def recall_of(
    result: Neighbors, features: np.ndarray, *, is_second: np.ndarray | None = None
) -> float:
    """Share of the exact neighbors of some rows that a result holds; of equal ones any will do."""
    num_rows, k = result.rows.shape
    asked = np.arange(0, num_rows, max(1, num_rows // _ASKED))
    pools = [(np.arange(num_rows), slice(0, k))]
    if is_second is not None:
        sides = np.flatnonzero(~is_second), np.flatnonzero(is_second)
        pools = [(sides[0], slice(0, k // 2)), (sides[1], slice(k // 2, k))]
    shares = []
    for pool, columns in pools:
        values = result.similarity[asked, columns]
        count = min(values.shape[1], len(pool))
        rows = on_host(products.take(features, pool))
        least = products.largest_products(features[asked], rows, count).least
        shares.append((values >= least[:, None] - single_error(features.shape[1])).mean())
    return float(np.mean(shares))


class _Graphs:
    """Candidates from one graph per set of rows."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[np.ndarray, Any]] = {}

    def propose(self, queries: Features, features: Features, count: int) -> Candidates:
        """As `products.largest_products`, but some may be missed, and none is said to be."""
        asked, rows = on_host(queries), on_host(features)
        if len(rows) <= _FEW_ROWS:
            return products.largest_products(asked, rows, count)
        graph = self._of(rows)
        graph.hnsw.efSearch = max(_SEARCH_WIDTH, 4 * count)
        numbers = graph.search(asked, count)[1]
        short = np.flatnonzero((numbers < 0).any(axis=1))  # the graph may fall into parts
        if len(short):
            numbers[short] = products.largest_products(asked[short], rows, count).rows
        return Candidates(numbers.astype(np.int32), np.full(len(numbers), -np.inf))

    def _of(self, rows: np.ndarray) -> Any:
        place = rows.__array_interface__["data"][0]
        if place not in self._known:
            graph = faiss.IndexHNSWFlat(rows.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = _BUILD_WIDTH
            graph.add(rows)
            self._known[place] = rows, graph
        return self._known[place][1]
