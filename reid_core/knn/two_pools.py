"""Nearest rows of each row in either of two pools: half of the neighbors from each modality.

Shapes: N rows, of which N_a belong to the first pool and N_b to the second, D feature width, k
neighbors, U distinct rows of a pool.

Within a pool this is `NeighborSearch`; across, the rows of one pool are searched among those of
the other by the same rules: proven to be the nearest, equal rows searched once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reid_core.compiled import compiled
from reid_core.knn import products
from reid_core.knn.all_pairs import across_candidates
from reid_core.knn.certified import best_on_host
from reid_core.knn.duplicates import DistinctRows, merge_ascending
from reid_core.knn.neighbors import (
    EXTRA_CANDIDATES,
    NO_ROW,
    QUERY_BLOCK,
    Neighbors,
    order_candidates,
)
from reid_core.knn.products import Candidates, Features, Propose
from reid_core.knn.screen import Screen
from reid_core.knn.search import NeighborSearch, screen_of, screened


class PoolSearch:
    """The k nearest rows of a pool for queries that are no rows of it, cut into blocks.

    Attributes:
        queries, pool: (U, D) distinct rows of either side; candidates are numbers of the pool's.
        num_candidates: of each query.
        num_blocks: block numbers are 0 ... num_blocks - 1.
    """

    def __init__(
        self,
        queries: DistinctRows,
        pool: DistinctRows,
        k: int,
        *,
        screen: Screen | None,
        propose: Propose,
    ) -> None:
        """Takes sides that are prepared, maybe for several searches.

        Args:
            queries, pool: unit rows of either side.
            k: at most the number of rows of the pool.
            screen: as `search.screen_of` gives it for the pool and k.
            propose: gives the candidates of a block on the CPU.
        """
        self._screen, self._propose = screen, propose
        self._asked, self._groups, self._k = queries.groups, pool.groups, k
        self.queries, self.pool = queries.features, pool.features
        self.num_candidates = min(k + EXTRA_CANDIDATES, len(self.pool))
        self.num_blocks = -(-len(self.queries) // QUERY_BLOCK)

    def run(self, block: int) -> Neighbors:
        """Distinct rows of the pool that are nearest to one block of distinct queries."""
        queries = self.queries[block * QUERY_BLOCK : (block + 1) * QUERY_BLOCK]
        if self._screen is not None:
            asked, pool = torch.as_tensor(queries), torch.as_tensor(self.pool)
            return screened(self._screen, asked, pool, min(self._k, len(pool)), own=None)
        candidates = self._propose(queries, self.pool, self.num_candidates)
        return self.best(queries, candidates)

    def best(self, queries: Features, candidates: Candidates) -> Neighbors:
        """The nearest of the distinct rows of the pool, from candidates of each query."""
        k = min(self._k, len(self.pool))
        return best_on_host(candidates, None, queries, self.pool, k)

    def join(self, blocks: Sequence[Neighbors]) -> Neighbors:
        """Neighbors of all queries among all rows of the pool, from all blocks in order."""
        rows = np.concatenate([block.rows for block in blocks])
        similarity = np.concatenate([block.similarity for block in blocks])
        if len(self.pool) < len(self._groups.member_of):
            shape = (len(rows), self._k)
            spread = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float64)
            _spread(rows, similarity, self._groups.starts, self._groups.members, *spread)
            rows, similarity = spread
        asked = self._asked.member_of
        return Neighbors(rows[asked], similarity[asked].astype(np.float32))


class BalancedSearch:
    """`NeighborSearch` with half of the neighbors from either modality.

    Attributes:
        num_blocks: block numbers are 0 ... num_blocks - 1.
    """

    def __init__(
        self,
        features: Features,
        is_second: np.ndarray,
        k: int,
        propose: Propose,
    ) -> None:
        """Parts the rows, and prepares each part once for both of its searches.

        Args:
            features: (N, D) unit rows of both modalities, as `products.unit_rows` gives them.
            is_second: (N,) bool or 0 and 1, which rows belong to the second modality.
            k: neighbors per row, the row itself included, even and 2 or above.
            propose: gives the candidates of a block on the CPU.

        Raises:
            ValueError: k is odd, the mask has another length, or a modality has fewer than k / 2
                rows.
        """
        is_second = np.asarray(is_second, dtype=bool)
        _check(is_second, len(features), k)
        self._sides = np.flatnonzero(~is_second), np.flatnonzero(is_second)
        half = k // 2
        a, b = (DistinctRows.of(products.take(features, side)) for side in self._sides)
        screen_a, screen_b = screen_of(a, half), screen_of(b, half)
        self._within = [
            NeighborSearch(a, half, screen=screen_a, propose=propose),
            NeighborSearch(b, half, screen=screen_b, propose=propose),
        ]
        self._across = [
            PoolSearch(a, b, half, screen=screen_b, propose=propose),
            PoolSearch(b, a, half, screen=screen_a, propose=propose),
        ]
        self._parts: list[NeighborSearch | PoolSearch] = [*self._within, *self._across]
        self._starts = np.cumsum([0, *(part.num_blocks for part in self._parts)])
        self.num_blocks = int(self._starts[-1])
        self._shape = (len(features), k)

    def run(self, block: int) -> Neighbors:
        """One block of one of the four searches, for `join`."""
        part = int(np.searchsorted(self._starts, block, side="right")) - 1
        return self._parts[part].run(block - int(self._starts[part]))

    def join(self, blocks: Sequence[Neighbors]) -> Neighbors:
        """All N rows' lists, see `neighbors.Search`, from all blocks in order."""
        joined = [
            part.join(blocks[start : start + part.num_blocks])
            for part, start in zip(self._parts, self._starts, strict=False)
        ]
        return self._side_by_side(joined[:2], joined[2:])

    def run_here(self) -> Neighbors:
        """All N rows' lists in this process; on the CPU with half of the products."""
        forth, back = self._across
        count = forth.num_candidates
        if products.on_device(forth.pool) or count != back.num_candidates:
            return self.join([self.run(block) for block in range(self.num_blocks)])
        within = [search.run_here() for search in self._within]
        sides = products.on_host(forth.queries), products.on_host(forth.pool)
        candidates = across_candidates(*sides, count)
        across = [
            search.join([search.best(search.queries, near)])
            for search, near in zip(self._across, candidates, strict=True)
        ]
        return self._side_by_side(within, across)

    def _side_by_side(self, within: Sequence[Neighbors], across: Sequence[Neighbors]) -> Neighbors:
        rows = np.empty(self._shape, dtype=np.int32)
        similarity = np.empty(self._shape, dtype=np.float32)
        half = self._shape[1] // 2
        columns = slice(0, half), slice(half, 2 * half)
        for side, (own, other) in enumerate(((0, 1), (1, 0))):
            queries = self._sides[side]
            rows[queries, columns[own]] = self._sides[own][within[side].rows]
            rows[queries, columns[other]] = self._sides[other][across[side].rows]
            similarity[queries, columns[own]] = within[side].similarity
            similarity[queries, columns[other]] = across[side].similarity
        return Neighbors(rows, similarity)


def merged_by_similarity(halves: Neighbors) -> Neighbors:
    """Both halves of each list in one order: the row itself, then (similarity falling, row).

    Args:
        halves: (N, k) as `BalancedSearch` gives them; not changed.
    """
    rows, similarity = halves.rows.copy(), halves.similarity.copy()
    order_candidates(rows, similarity, np.arange(len(rows)))
    return Neighbors(rows, similarity)


def alternating(halves: Neighbors, is_second: np.ndarray) -> Neighbors:
    """Both halves of each list in turn: the row itself, the other modality's nearest, ...

    Every beginning of such a list is balanced, whatever is cut from it later.

    Args:
        halves: (N, k) as `BalancedSearch` gives them; not changed.
        is_second: (N,) bool.

    Reconstruction: ours, in place of the public code's order by similarity.
    """
    half = halves.rows.shape[1] // 2
    first, second = np.arange(half), half + np.arange(half)
    turns = np.stack([np.stack([first, second]), np.stack([second, first])]).transpose(0, 2, 1)
    columns = turns.reshape(2, -1)[np.asarray(is_second, dtype=np.int64)]
    return Neighbors(
        np.take_along_axis(halves.rows, columns, axis=1),
        np.take_along_axis(halves.similarity, columns, axis=1),
    )


def _check(is_second: np.ndarray, num_rows: int, k: int) -> None:
    if k < 2 or k % 2:
        raise ValueError(f"k1 is {k}; it must be even to take half from each modality")
    if is_second.shape != (num_rows,):
        raise ValueError(f"is_second has shape {is_second.shape} for {num_rows} rows")
    sizes = int((~is_second).sum()), int(is_second.sum())
    if min(sizes) < k // 2:
        raise ValueError(
            f"the {'second' if sizes[1] < sizes[0] else 'first'} modality is too small: the two "
            f"have {sizes[0]} and {sizes[1]} rows, and k1={k} takes {k // 2} of each: lower k1"
        )


@compiled()
def _spread(
    rows: np.ndarray,
    similarity: np.ndarray,
    starts: np.ndarray,
    members: np.ndarray,
    out_rows: np.ndarray,
    out_similarity: np.ndarray,
) -> None:
    """Puts in place of each distinct row all rows equal to it; ties go by the row."""
    k = out_rows.shape[1]
    for i in range(out_rows.shape[0]):
        near, value = rows[i], similarity[i]
        c, filled = 0, 0
        while filled < k:
            begin, level = filled, value[c]
            while c < len(near) and value[c] == level:
                twins = members[starts[near[c]] : starts[near[c] + 1]]
                filled = merge_ascending(out_rows[i], begin, filled, twins, NO_ROW)
                c += 1
            out_similarity[i, begin:filled] = level
