"""Nearest neighbors by cosine: exact, the same for any split of the queries, self first.

Shapes: N rows, U distinct rows, D feature width, k neighbors.

The search runs in float32 on the CPU and in float16 on an accelerator, and `certified` proves that
what it takes for the nearest is the nearest, so the answer is the same on every device and for
every split of the queries. Rows that are equal to the last bit (captions have many) are searched
once: they would fill the candidates with ties.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reid_core.knn import products
from reid_core.knn.all_pairs import all_pairs_candidates
from reid_core.knn.certified import best_on_device, best_on_host, candidates_on_device
from reid_core.knn.duplicates import DistinctRows, spread_to_equal_rows
from reid_core.knn.faiss_screen import open_screen
from reid_core.knn.neighbors import EXTRA_CANDIDATES, QUERY_BLOCK, BlockSearch, Neighbors
from reid_core.knn.products import Features, Propose
from reid_core.knn.screen import Screen


class NeighborSearch:
    """A search for the k nearest rows of every row, cut into blocks that can run anywhere.

    Each block searches all rows for its own: faiss's flat index on the CPU; on an accelerator
    float16 products and topk, or faiss's kernels (`faiss_screen`). Every machine that builds a
    search over the same features can run any of its blocks, and the neighbors are the same for any
    split.

    Attributes:
        num_blocks: block numbers are 0 ... num_blocks - 1.
    """

    def __init__(
        self, rows: DistinctRows, k: int, *, screen: Screen | None, propose: Propose
    ) -> None:
        """Takes rows that are prepared, maybe for several searches.

        Args:
            rows: N unit rows, U of them distinct.
            k: neighbors per row, the row itself included; at most N are given.
            screen: as `screen_of` gives it for the rows and k.
            propose: gives the candidates of a block on the CPU.
        """
        self._groups, self._distinct = rows.groups, rows.features
        self._screen, self._propose = screen, propose
        self._k = min(k, len(rows.groups.member_of))
        self._num_found = min(self._k, len(self._distinct))
        self._num_candidates = min(self._k + EXTRA_CANDIDATES, len(self._distinct))
        self.num_blocks = -(-len(self._distinct) // QUERY_BLOCK)

    def run(self, block: int) -> Neighbors:
        """Neighbors of one block of distinct rows among the distinct rows, for `join`."""
        start = block * QUERY_BLOCK
        stop = min(start + QUERY_BLOCK, len(self._distinct))
        if self._screen is not None:
            return self._on_device(start, stop)
        own, queries = np.arange(start, stop), self._distinct[start:stop]
        candidates = self._propose(queries, self._distinct, self._num_candidates)
        return best_on_host(candidates, own, queries, self._distinct, self._num_found)

    def join(self, blocks: Sequence[Neighbors]) -> Neighbors:
        """Neighbors of all N rows.

        Args:
            blocks: the results of `run` for all blocks, in order.
        """
        rows = np.concatenate([block.rows for block in blocks])
        similarity = np.concatenate([block.similarity for block in blocks])
        if len(self._distinct) < len(self._groups.member_of):
            rows, similarity = spread_to_equal_rows(self._groups, rows, similarity, self._k)
        return Neighbors(rows, similarity.astype(np.float32))

    def run_here(self) -> Neighbors:
        """Neighbors of all N rows in this process; on the CPU with half of the products."""
        num_rows = len(self._distinct)
        if self._screen is not None:
            return self.join([self._on_device(0, num_rows)])
        features = products.on_host(self._distinct)
        candidates = all_pairs_candidates(features, self._num_candidates)
        own = np.arange(num_rows)
        return self.join([best_on_host(candidates, own, features, features, self._num_found)])

    def _on_device(self, start: int, stop: int) -> Neighbors:
        """Rows start ... stop - 1 by as many at a time as the device likes, brought to the host."""
        assert self._screen is not None
        features = torch.as_tensor(self._distinct)
        return screened(
            self._screen,
            features[start:stop],
            features,
            self._num_found,
            own=torch.arange(start, stop, device=features.device),
        )


def screen_of(rows: DistinctRows, k: int) -> Screen | None:
    """What proposes candidates for the k nearest of rows on an accelerator; None on the CPU."""
    if not products.on_device(rows.features):
        return None
    features = torch.as_tensor(rows.features)
    return open_screen(features, candidates_on_device(k, len(features)))


def screened(
    screen: Screen, queries: Tensor, features: Tensor, k: int, *, own: Tensor | None
) -> Neighbors:
    """`best_on_device` of any number of queries, with the result on the host.

    Args:
        screen: of the features.
        queries, features, k, own: as `best_on_device` takes them.
    """
    step = screen.queries_at_a_time()
    parts = [
        best_on_device(
            screen,
            None if own is None else own[start : start + step],
            queries[start : start + step],
            features,
            k,
        )
        for start in range(0, len(queries), step)
    ]
    rows = torch.cat([rows.int() for rows, _ in parts]).cpu().numpy()
    return Neighbors(rows, torch.cat([exact for _, exact in parts]).cpu().numpy())


def nearest(features: Features, k: int, /, *, is_second: np.ndarray | None = None) -> Neighbors:
    """Exact k nearest rows of each row by cosine.

    Args:
        features: (N, D) unit rows, array or tensor, CPU or CUDA; searched where they are.
        k: neighbors per row, the row itself included; at most N are given.
        is_second: (N,) modality of each row: half of the neighbors come from either, see
            `neighbors.Search`; None for the nearest whatever they are.

    Returns:
        Rows and cosines (N, min(k, N)), on the host.

    Raises:
        ValueError: k below 1, or a row that is zero, not finite or not of unit length; and as
            `two_pools.BalancedSearch`.
    """
    return open_search(features, k, is_second=is_second).run_here()


def open_search(
    features: Features,
    k: int,
    *,
    is_second: np.ndarray | None = None,
    propose: Propose = products.largest_products,
) -> BlockSearch:
    """The search that `nearest` runs, in blocks for whoever spreads them or proposes for them."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k is {k!r}: a whole number, since a row has at least itself as one")
    features = products.unit_rows(features)
    if is_second is None:
        rows = DistinctRows.of(features)
        return NeighborSearch(rows, k, screen=screen_of(rows, k), propose=propose)
    from reid_core.knn.two_pools import BalancedSearch  # which is made of searches of this module

    return BalancedSearch(features, is_second, k, propose)
