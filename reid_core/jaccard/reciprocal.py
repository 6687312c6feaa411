"""Sparse weights over k-reciprocal neighbors: which rows vouch for which.

Shapes: N rows, D feature width, k1 and k2 neighbors. Kernels run outside the interpreter lock, one
block of rows per call, for `reid_core.knn.threads.over_blocks`; nothing here is ever N x N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid_core.compiled import compiled
from reid_core.knn.fixed_point import products_of_pairs
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.products import Features
from reid_core.knn.threads import over_blocks


@dataclass(frozen=True)
class SparseRows:
    """A CSR matrix: row i has columns[indptr[i]:indptr[i + 1]] and the values beside them.

    Attributes:
        indptr: (N + 1,) int64.
        columns: (E,) int32, each once in a row, in no particular order.
        values: (E,) float32.
    """

    indptr: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @staticmethod
    def joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> SparseRows:
        """From (entries per row, columns, values) of consecutive blocks of rows."""
        return SparseRows(
            offsets(np.concatenate([counts for counts, _, _ in parts])),
            np.concatenate([columns for _, columns, _ in parts]),
            np.concatenate([values for _, _, values in parts]),
        )


def offsets(counts: np.ndarray) -> np.ndarray:
    """Where each row begins, and at last the end: int64 (N + 1,)."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def rows_per_block(num_rows: int) -> int:
    """Enough blocks for any number of threads, few enough that their O(N) scratch is no cost."""
    return min(max(128, num_rows // 32), 8192)


@compiled()
def grown(array: np.ndarray, needed: int) -> np.ndarray:
    """The array itself, or a copy of at least twice the length where it is too short."""
    if needed <= len(array):
        return array
    longer = np.empty(max(needed, 2 * len(array)), dtype=array.dtype)
    for place in range(len(array)):
        longer[place] = array[place]
    return longer


def reciprocal_weights(neighbors: Neighbors, features: Features, k1: int) -> SparseRows:
    """Softmax weights of each row over its expanded k-reciprocal set.

    R(i) holds the neighbors of i that have i among their own first k1. A half set R_h(q), the same
    with int(round(k1 / 2)) + 1 columns, of a q in R(i) joins it when more than two thirds of R_h(q)
    lie in R(i), always the set before anything joined. Weights are softmax(-(2 - 2 cos)).

    Args:
        neighbors: (N, min(k1, N)) neighbors of each row, itself first.
        features: (N, D) unit rows, for the similarities that the lists do not hold.
        k1: neighbors that reciprocity is asked for.

    Returns:
        N sparse rows that each sum to 1.

    Reference: Zhong et al., CVPR 2017, as CCLNet's and cluster-contrast's code compute it.
    """
    # NumPy rounds halves to even, as the public code does
    half = min(int(np.around(k1 / 2)) + 1, neighbors.rows.shape[1])
    sets = _expanded_sets(neighbors, _places(neighbors.rows), half)
    unknown = np.flatnonzero(np.isnan(sets.values))
    owners = np.searchsorted(sets.indptr, unknown, side="right") - 1
    sets.values[unknown] = products_of_pairs(features, owners, sets.columns[unknown])
    # the constant of -(2 - 2 cos) cancels
    np.exp(2 * sets.values, out=sets.values)
    sums = np.add.reduceat(sets.values, sets.indptr[:-1])
    np.divide(sets.values, np.repeat(sums, np.diff(sets.indptr)), out=sets.values)
    return sets


def averaged(weights: SparseRows, rows: np.ndarray) -> SparseRows:
    """Mean of the weight rows of each row's nearest neighbors.

    Args:
        weights: N sparse rows.
        rows: (N, k2) int32, the rows to average over.

    Returns:
        N sparse rows.

    Reference: as `reciprocal_weights`, the query expansion over k2.
    """

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _average(weights.indptr, weights.columns, weights.values, rows, start, stop)

    return SparseRows.joined(over_blocks(work, len(rows), rows_per_block(len(rows))))


def _places(rows: np.ndarray) -> np.ndarray:
    """int16 (N, k): place of the row in the list of each of its neighbors, -1 where absent.

    Only the first of a row's own entries has a place: further ones fill up a list that is short.
    """
    places = np.empty(rows.shape, dtype=np.int16)

    def work(start: int, stop: int) -> None:
        _find_places(rows, start, places[start:stop])

    over_blocks(work, len(rows), rows_per_block(len(rows)))
    return places


def _expanded_sets(neighbors: Neighbors, places: np.ndarray, half: int) -> SparseRows:
    """Members of each row's set with their similarity, NaN where no list holds it."""
    # (place in the own list, place in the other's list) both below `half`
    in_half = (places[:, :half] >= 0) & (places[:, :half] < half)
    half_indptr = offsets(in_half.sum(axis=1))
    half_columns = neighbors.rows[:, :half][in_half]

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _expand(
            neighbors.rows, neighbors.similarity, places, half_indptr, half_columns, start, stop
        )

    return SparseRows.joined(over_blocks(work, len(places), rows_per_block(len(places))))


@compiled()
def _find_places(rows: np.ndarray, start: int, places: np.ndarray) -> None:
    for r in range(places.shape[0]):
        places[r, 0] = 0
        for c in range(1, places.shape[1]):
            others = rows[rows[start + r, c]]
            place = np.int32(-1)
            if rows[start + r, c] == start + r:
                places[r, c] = place
                continue
            # no early exit: a loop of fixed length is turned into a few vector instructions
            for q in range(places.shape[1]):
                place = max(place, np.int32(q) if others[q] == start + r else np.int32(-1))
            places[r, c] = place


@compiled()
def _expand(
    rows: np.ndarray,
    similarity: np.ndarray,
    places: np.ndarray,
    half_indptr: np.ndarray,
    half_columns: np.ndarray,
    start: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.zeros(stop - start, dtype=np.int64)
    members = np.empty(64 * (stop - start), dtype=np.int32)
    values = np.empty(64 * (stop - start), dtype=np.float32)
    # 2 r + 1 marks the row's own reciprocal set, 2 r + 2 what joined it; older rows are below
    mark = np.zeros(len(rows), dtype=np.int32)
    known = np.full(len(rows), np.nan, dtype=np.float32)
    filled = 0
    for r in range(stop - start):
        i, own, begin = start + r, np.int32(2 * r + 1), filled
        members = grown(members, filled + rows.shape[1] * (rows.shape[1] + 1))
        for c in range(rows.shape[1]):
            known[rows[i, c]] = similarity[i, c]
            if places[i, c] >= 0:
                mark[rows[i, c]] = own
                members[filled] = rows[i, c]
                filled += 1
        for m in range(begin, filled):
            first, last = half_indptr[members[m]], half_indptr[members[m] + 1]
            shared = 0
            for e in range(first, last):
                shared += mark[half_columns[e]] == own
            if 3 * shared <= 2 * (last - first):
                continue
            for e in range(first, last):
                if mark[half_columns[e]] < own:
                    mark[half_columns[e]] = own + 1
                    members[filled] = half_columns[e]
                    filled += 1
        values = grown(values, filled)
        for m in range(begin, filled):
            values[m] = known[members[m]]
        for c in range(rows.shape[1]):
            known[rows[i, c]] = np.nan
        counts[r] = filled - begin
    return counts, members[:filled].copy(), values[:filled].copy()


@compiled()
def _average(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    start: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.zeros(stop - start, dtype=np.int64)
    out_columns = np.empty(64 * (stop - start), dtype=np.int32)
    out_values = np.empty(64 * (stop - start), dtype=np.float32)
    total = np.zeros(len(indptr) - 1, dtype=np.float32)
    share = np.float32(1.0 / rows.shape[1])
    filled = 0
    for r in range(stop - start):
        begin = filled
        for q in rows[start + r]:
            out_columns = grown(out_columns, filled + indptr[q + 1] - indptr[q])
            for e in range(indptr[q], indptr[q + 1]):
                column = columns[e]
                if total[column] == 0:
                    out_columns[filled] = column
                    filled += 1
                total[column] += values[e] * share
        counts[r] = filled - begin
        out_values = grown(out_values, filled)
        for e in range(begin, filled):
            out_values[e] = total[out_columns[e]]
            total[out_columns[e]] = 0
    return counts, out_columns[:filled].copy(), out_values[:filled].copy()
