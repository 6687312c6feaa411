"""Nearest neighbours by cosine: exact, the same for any split of the queries, self first.

Shapes: N rows, U distinct rows, D feature width, k neighbours.

The search itself runs in float32, whose rounding moves with the shape of the product. So a few
more candidates than asked for are taken, multiplied again in float64 and ordered by (similarity,
row), and the queries always go in the same blocks, whoever computes which. Rows that are equal to
the last bit (captions have many) are searched once: they would fill the candidates with ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from reid_core.knn import products
from reid_core.knn.all_pairs import all_pairs_candidates
from reid_core.knn.duplicates import find_equal_rows, spread_to_equal_rows
from reid_core.knn.products import Features

_QUERY_BLOCK = 1024  # rows of one search call; part of the result's definition, see above
_EXTRA_CANDIDATES = 8


@dataclass(frozen=True)
class Neighbours:
    """Nearest rows of each row.

    Attributes:
        rows: (N, k) int32; the row itself first, then by (distance, row).
        similarity: (N, k) float32 cosines.
    """

    rows: np.ndarray
    similarity: np.ndarray


Search = Callable[[Features, int], Neighbours]
"""(N, D) unit rows and k -> the k nearest rows of each, as `nearest`."""


class NeighbourSearch:
    """A search for the k nearest rows of every row, cut into blocks that can run anywhere.

    Each block searches all rows for its own: faiss's flat index on the CPU, product and topk on
    CUDA. Every machine that builds a search over the same features can run any of its blocks, and
    the neighbours are the same for any split.

    Attributes:
        num_blocks: block numbers are 0 ... num_blocks - 1.
    """

    def __init__(self, features: Features, k: int) -> None:
        """Checks the rows and finds equal ones.

        Args:
            features: (N, D) unit rows, array or tensor, CPU or CUDA.
            k: neighbours per row, the row itself included; at most N are given.

        Raises:
            ValueError: k below 1, or a row that is zero, not finite or not of unit length.
        """
        if k < 1:
            raise ValueError(f"k is {k}; a row has at least itself as a neighbour")
        features = products.unit_rows(features)
        self._num_rows = len(features)
        self._k = min(k, self._num_rows)
        self._groups = find_equal_rows(features)
        first = self._groups.first
        self._distinct = features if len(first) == len(features) else products.take(features, first)
        self._num_candidates = min(self._k + _EXTRA_CANDIDATES, len(first))
        self.num_blocks = -(-len(first) // _QUERY_BLOCK)

    def run(self, block: int) -> Neighbours:
        """Neighbours of one block of distinct rows among the distinct rows, for `join`."""
        start = block * _QUERY_BLOCK
        queries = self._distinct[start : start + _QUERY_BLOCK]
        candidates = products.largest_products(queries, self._distinct, self._num_candidates)
        own = np.arange(start, start + len(queries))
        return _best(candidates, own, queries, self._distinct, self._k)

    def join(self, blocks: Sequence[Neighbours]) -> Neighbours:
        """Neighbours of all N rows.

        Args:
            blocks: the results of `run` for all blocks, in order.
        """
        rows = np.concatenate([block.rows for block in blocks])
        similarity = np.concatenate([block.similarity for block in blocks])
        if len(self._groups.first) < self._num_rows:
            rows, similarity = spread_to_equal_rows(self._groups, rows, similarity, self._k)
        return Neighbours(rows, similarity.astype(np.float32))

    def run_here(self) -> Neighbours:
        """Neighbours of all N rows in this process; on the CPU with half of the products."""
        if products.on_device(self._distinct):
            return self.join([self.run(block) for block in range(self.num_blocks)])
        features = products.on_host(self._distinct)
        candidates = all_pairs_candidates(features, self._num_candidates)
        own = np.arange(len(features))
        return self.join([_best(candidates, own, features, features, self._k)])


def nearest(features: Features, k: int) -> Neighbours:
    """Exact k nearest rows of each row by cosine.

    Args:
        features: (N, D) unit rows, array or tensor, CPU or CUDA; searched where they are.
        k: neighbours per row, the row itself included; at most N are given.

    Returns:
        Rows and cosines (N, min(k, N)), on the host.

    Raises:
        ValueError: as `NeighbourSearch`.
    """
    return NeighbourSearch(features, k).run_here()


def nearest_approximately(
    features: Features, k: int, *, num_lists: int, num_probes: int, seed: int
) -> Neighbours:
    """k nearest rows by an inverted file: faster above some 100,000 rows, and not exact.

    Each row is compared with the rows of the `num_probes` lists closest to it. Measure `recall`
    on a sample before trusting the result.

    Args:
        features: (N, D) unit rows, array or tensor; searched by faiss on the CPU.
        k: neighbours per row, the row itself included.
        num_lists: cells that the rows are divided into, sqrt(N) to 4 sqrt(N) is usual.
        num_probes: cells visited per row; num_lists of them is exhaustive.
        seed: of the cells' k-means.

    Returns:
        Rows and cosines (N, min(k, N)). Where the visited cells hold fewer than k rows, the row
        itself fills up.

    Raises:
        ValueError: as `NeighbourSearch`; also without faiss.
    """
    if products.faiss is None:
        raise ValueError("the approximate search needs faiss: install the extra 'cpu' or 'gpu'")
    faiss = products.faiss
    host = products.on_host(products.unit_rows(features))
    width = host.shape[1]
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(width), width, num_lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = seed
    index.train(host)
    index.add(host)
    index.nprobe = num_probes
    _, found = index.search(host, min(k + _EXTRA_CANDIDATES, len(host)))
    own = np.arange(len(host))
    best = _best(found.astype(np.int32), own, host, host, min(k, len(host)))
    return Neighbours(best.rows, best.similarity.astype(np.float32))


def recall(found: Neighbours, exact: Neighbours) -> float:
    """Share of the exact neighbours, self not counted, that were found."""
    if exact.rows.shape[1] == 1:
        return 1.0
    # (row, neighbour) as one number
    own = np.arange(len(exact.rows), dtype=np.int64)[:, None] * len(exact.rows)
    return float(np.isin(own + exact.rows[:, 1:], own + found.rows).mean())


def nearest_from_both(features: Features, is_second: np.ndarray, k: int) -> Neighbours:
    """k nearest rows, half of them from each of two modalities, own and other in turn.

    A row's list is: itself, nearest of the other modality, second of its own, second of the other
    and so on, so that every beginning of the list is balanced, whatever is cut from it later.

    Args:
        features: (N, D) unit rows of both modalities.
        is_second: (N,) bool or 0 and 1, which rows belong to the second modality.
        k: neighbours per row, the row itself included, even and 2 or above.

    Returns:
        Rows and cosines (N, k).

    Raises:
        ValueError: k is odd, the mask has another length, or a modality has fewer than k / 2 rows;
            and as `NeighbourSearch`.

    Reconstruction: the balanced selection that BMIL is reported to use; its order is ours.
    """
    if k < 2 or k % 2:
        raise ValueError(f"k is {k}; it must be even to take half from each modality")
    features = products.unit_rows(features)
    is_second = np.asarray(is_second, dtype=bool)
    if is_second.shape != (len(features),):
        raise ValueError(f"is_second has shape {is_second.shape} for {len(features)} rows")
    sides = [np.flatnonzero(~is_second), np.flatnonzero(is_second)]
    if min(map(len, sides)) < k // 2:
        raise ValueError(
            f"the modalities have {len(sides[0])} and {len(sides[1])} rows; k={k} needs at least"
            f" {k // 2} of each: lower k1"
        )
    out = Neighbours(
        np.empty((len(features), k), dtype=np.int32),
        np.empty((len(features), k), dtype=np.float32),
    )
    for own, other in (sides, sides[::-1]):
        within = nearest(products.take(features, own), k // 2)
        across = _nearest_of_others(features, own, other, k // 2)
        out.rows[own, 0::2], out.rows[own, 1::2] = own[within.rows], across.rows
        out.similarity[own, 0::2], out.similarity[own, 1::2] = within.similarity, across.similarity
    return out


def _best(
    candidates: np.ndarray, own: np.ndarray, queries: Features, features: Features, k: int
) -> Neighbours:
    """The k best candidates, each row's own number first, then by (float64 similarity, row).

    A candidate of -1 is none; where fewer than k remain the row itself fills up.
    """
    # every row is a candidate of its own: rounding may rank many rows above it, and an
    # approximate list may lack it
    missing = ~(candidates == own[:, None]).any(axis=1)
    candidates[missing, -1] = own[missing]
    exact = products.exact_products(queries, features, candidates)
    exact[candidates < 0] = -np.inf  # the product of -1 was the last row's
    _order(candidates, exact, own)
    rows, similarity = candidates[:, :k], exact[:, :k]
    none = rows < 0
    return Neighbours(
        np.where(none, own[:, None].astype(np.int32), rows),
        np.where(none, similarity[:, :1], similarity),
    )


def _nearest_of_others(
    features: Features, queries: np.ndarray, among: np.ndarray, k: int
) -> Neighbours:
    """k nearest of the rows `among` for each of the rows `queries`, none of which is among them."""
    own, pool = products.take(features, queries), products.take(features, among)
    out = Neighbours(
        np.empty((len(queries), k), dtype=np.int32), np.empty((len(queries), k), dtype=np.float32)
    )
    for start in range(0, len(queries), _QUERY_BLOCK):
        part = slice(start, start + _QUERY_BLOCK)
        count = min(k + _EXTRA_CANDIDATES, len(among))
        local = products.largest_products(own[part], pool, count)
        exact = products.exact_products(own[part], pool, local)
        candidates = among[local].astype(np.int32)
        _order(candidates, exact, queries[part])
        out.rows[part], out.similarity[part] = candidates[:, :k], exact[:, :k]
    return out


@numba.njit(nogil=True, cache=True)
def _order(candidates: np.ndarray, exact: np.ndarray, own: np.ndarray) -> None:
    """Sorts each row's candidates in place: its own number, then (similarity falling, row)."""
    for i in range(candidates.shape[0]):
        rows, values = candidates[i], exact[i]
        for c in range(1, len(rows)):
            row, value, place = rows[c], values[c], c
            while (
                place > 0
                and rows[place - 1] != own[i]
                and (
                    row == own[i]
                    or value > values[place - 1]
                    or (value == values[place - 1] and row < rows[place - 1])
                )
            ):
                rows[place], values[place] = rows[place - 1], values[place - 1]
                place -= 1
            rows[place], values[place] = row, value
