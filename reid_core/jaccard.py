"""Kernels of the k-reciprocal Jaccard graph: sparse rows in, sparse rows out, blocks of rows.

Shapes: N rows, k neighbours. Sparse matrices are CSR triples with int64 `indptr`, int32 columns
and float32 values. Kernels run outside the interpreter lock, one block of rows per call, so that
`reid_core.threads.over_blocks` can spread them; nothing here is ever N x N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from reid_core.threads import over_blocks

_BLOCK = 256
_SLACK = 1e-5  # float32 sums of a few hundred weights are off by less


@dataclass(frozen=True)
class SparseRows:
    """A CSR matrix: row i has columns[indptr[i]:indptr[i + 1]] and the values beside them."""

    indptr: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1


def reciprocal(rows: np.ndarray, num_columns: int) -> np.ndarray:
    """Which neighbours have the row among their own neighbours.

    Args:
        rows: (N, k) int32 neighbours, the row itself first.
        num_columns: how many columns count, on both sides.

    Returns:
        bool (N, min(num_columns, k)).
    """
    mask = np.empty((len(rows), min(num_columns, rows.shape[1])), dtype=np.bool_)

    def work(start: int, stop: int) -> None:
        _reciprocal(rows, start, mask[start:stop])

    over_blocks(work, len(rows), _BLOCK)
    return mask


def expanded_sets(rows: np.ndarray, full: np.ndarray, half: np.ndarray) -> SparseRows:
    """The reciprocal set of each row, grown by the half sets that overlap it by two thirds.

    R_h(q) of a q in R(i) joins when |R_h(q) and R(i)| > 2/3 |R_h(q)|; R(i) is always the set
    before any growth.

    Args:
        rows: (N, k) int32 neighbours.
        full, half: masks of `reciprocal` for k1 columns and for int(round(k1 / 2)) + 1 columns.

    Returns:
        Members of each row's set; the values are NaN, to be filled with similarities.

    Reference: CPCL specification, section 3 step 2.
    """
    halves = _compact(rows[:, : half.shape[1]], half)

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return _expand(rows, full, halves.indptr, halves.columns, start, stop)

    parts = over_blocks(work, len(rows), _BLOCK)
    columns = np.concatenate([members for _, members in parts])
    indptr = _offsets(np.concatenate([counts for counts, _ in parts]))
    return SparseRows(indptr, columns, np.full(len(columns), np.nan, dtype=np.float32))


def averaged(weights: SparseRows, rows: np.ndarray) -> SparseRows:
    """Mean of the weight rows of each row's nearest neighbours.

    Args:
        weights: N sparse rows.
        rows: (N, k2) int32, the rows to average over.

    Returns:
        N sparse rows; columns in the order in which they were met.

    Reference: CPCL specification, section 3 step 2 (query expansion over k2).
    """

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _average(weights.indptr, weights.columns, weights.values, rows, start, stop)

    parts = over_blocks(work, len(rows), _BLOCK)
    return SparseRows(
        _offsets(np.concatenate([counts for counts, _, _ in parts])),
        np.concatenate([columns for _, columns, _ in parts]),
        np.concatenate([values for _, _, values in parts]),
    )


def close_pairs(weights: SparseRows, *, max_distance: float) -> SparseRows:
    """Jaccard distances d(i, j) <= max_distance of all j < i.

    d = 1 - s / (2 - s), clipped at 0, with s = sum over k of min(V_ik, V_jk).

    Args:
        weights: V, N sparse rows that each sum to 1.
        max_distance: in [0, 1]; at 1 every pair that shares anything is kept.

    Returns:
        N sparse rows of the strictly lower triangle, columns in no particular order.
    """
    least_shared = 2 * (1 - max_distance) / (2 - max_distance) - _SLACK
    ordered = _rare_columns_first(weights)
    prefix = _prefix_lengths(ordered, least_shared)
    index = _transposed_prefix(ordered, prefix)
    limit = float(np.float32(max_distance))  # as the distances are float32

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _join(
            ordered.indptr, ordered.columns, ordered.values, prefix,
            index.indptr, index.columns, least_shared, limit, start, stop,
        )  # fmt: skip

    parts = over_blocks(work, len(weights), _BLOCK)
    return SparseRows(
        _offsets(np.concatenate([counts for counts, _, _ in parts])),
        np.concatenate([columns for _, columns, _ in parts]),
        np.concatenate([values for _, _, values in parts]),
    )


def _compact(rows: np.ndarray, mask: np.ndarray) -> SparseRows:
    """The masked entries of each row as sparse rows without values."""
    return SparseRows(_offsets(mask.sum(axis=1)), rows[mask], np.empty(0, dtype=np.float32))


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _rare_columns_first(weights: SparseRows) -> SparseRows:
    """The same rows, columns numbered by how many rows have them (rarest first) and sorted."""
    lengths = np.bincount(weights.columns, minlength=len(weights))
    number = np.empty(len(weights), dtype=np.int32)
    number[np.argsort(lengths, kind="stable")] = np.arange(len(weights), dtype=np.int32)
    ordered = SparseRows(
        weights.indptr, np.empty_like(weights.columns), np.empty_like(weights.values)
    )

    def work(start: int, stop: int) -> None:
        _renumber_and_sort(
            weights.indptr, weights.columns, weights.values, number,
            ordered.columns, ordered.values, start, stop,
        )  # fmt: skip

    over_blocks(work, len(weights), _BLOCK)
    return ordered


def _prefix_lengths(ordered: SparseRows, least_shared: float) -> np.ndarray:
    """How many entries of each row to look at: what follows weighs less than `least_shared`.

    Two rows that share `least_shared` or more share a column that lies in both their prefixes: of
    the two prefixes one ends first, and beyond its end that row has too little weight left.
    """
    lengths = np.empty(len(ordered), dtype=np.int64)
    _prefixes(ordered.indptr, ordered.values, least_shared, lengths)
    return lengths


def _transposed_prefix(ordered: SparseRows, prefix: np.ndarray) -> SparseRows:
    """For each column the rows, ascending, whose prefix holds it."""
    counts = np.zeros(len(ordered), dtype=np.int64)
    _count_prefix_columns(ordered.indptr, ordered.columns, prefix, counts)
    indptr = _offsets(counts)
    rows = np.empty(indptr[-1], dtype=np.int32)
    _fill_prefix_columns(ordered.indptr, ordered.columns, prefix, indptr[:-1].copy(), rows)
    return SparseRows(indptr, rows, np.empty(0, dtype=np.float32))


def fill_known(sets: SparseRows, rows: np.ndarray, similarity: np.ndarray) -> None:
    """Writes into `sets.values` the similarities that the neighbour lists already hold.

    Args:
        sets: members of each row's set, values NaN; changed in place.
        rows, similarity: (N, k) neighbours and their cosines.
    """

    def work(start: int, stop: int) -> None:
        _fill_known(sets.indptr, sets.columns, sets.values, rows, similarity, start, stop)

    over_blocks(work, len(rows), _BLOCK)


@numba.njit(nogil=True, cache=True)
def _reciprocal(rows: np.ndarray, start: int, mask: np.ndarray) -> None:
    for r in range(mask.shape[0]):
        for c in range(mask.shape[1]):
            found = False
            other = rows[rows[start + r, c]]
            for q in range(mask.shape[1]):
                found |= other[q] == start + r
            mask[r, c] = found


@numba.njit(nogil=True, cache=True)
def _grown(array: np.ndarray, needed: int) -> np.ndarray:
    """The array itself, or a copy of at least twice the length where it is too short."""
    if needed <= len(array):
        return array
    longer = np.empty(max(needed, 2 * len(array)), dtype=array.dtype)
    longer[: len(array)] = array
    return longer


@numba.njit(nogil=True, cache=True)
def _expand(
    rows: np.ndarray,
    full: np.ndarray,
    half_indptr: np.ndarray,
    half_columns: np.ndarray,
    start: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros(stop - start, dtype=np.int64)
    members = np.empty(64 * (stop - start), dtype=np.int32)
    # 2 r + 1 marks the row's own reciprocal set, 2 r + 2 what joined it; older rows are below
    mark = np.zeros(len(rows), dtype=np.int32)
    filled = 0
    for r in range(stop - start):
        i, own = start + r, np.int32(2 * r + 1)
        begin = filled
        members = _grown(members, filled + full.shape[1])
        for c in range(full.shape[1]):
            if full[i, c]:
                mark[rows[i, c]] = own
                members[filled] = rows[i, c]
                filled += 1
        for m in range(begin, filled):
            q = members[m]
            others = half_columns[half_indptr[q] : half_indptr[q + 1]]
            shared = 0
            for other in others:
                shared += mark[other] == own
            if 3 * shared > 2 * len(others):
                members = _grown(members, filled + len(others))
                for other in others:
                    if mark[other] < own:
                        mark[other] = own + 1
                        members[filled] = other
                        filled += 1
        counts[r] = filled - begin
    return counts, members[:filled].copy()


@numba.njit(nogil=True, cache=True)
def _position(row: np.ndarray, wanted: int) -> int:
    for c in range(len(row)):
        if row[c] == wanted:
            return c
    return -1


@numba.njit(nogil=True, cache=True)
def _fill_known(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    similarity: np.ndarray,
    start: int,
    stop: int,
) -> None:
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            j = columns[e]
            c = _position(rows[i], j)
            if c >= 0:
                values[e] = similarity[i, c]
                continue
            c = _position(rows[j], i)
            if c >= 0:
                values[e] = similarity[j, c]


@numba.njit(nogil=True, cache=True)
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
            out_columns = _grown(out_columns, filled + indptr[q + 1] - indptr[q])
            for e in range(indptr[q], indptr[q + 1]):
                column = columns[e]
                if total[column] == 0:
                    out_columns[filled] = column
                    filled += 1
                total[column] += values[e] * share
        counts[r] = filled - begin
        out_values = _grown(out_values, len(out_columns))
        for e in range(begin, filled):
            out_values[e] = total[out_columns[e]]
            total[out_columns[e]] = 0
    return counts, out_columns[:filled].copy(), out_values[:filled].copy()


@numba.njit(nogil=True, cache=True)
def _renumber_and_sort(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    number: np.ndarray,
    out_columns: np.ndarray,
    out_values: np.ndarray,
    start: int,
    stop: int,
) -> None:
    for i in range(start, stop):
        begin, end = indptr[i], indptr[i + 1]
        new = number[columns[begin:end]]
        order = np.argsort(new)
        out_columns[begin:end] = new[order]
        out_values[begin:end] = values[begin:end][order]


@numba.njit(nogil=True, cache=True)
def _prefixes(
    indptr: np.ndarray, values: np.ndarray, least_shared: float, lengths: np.ndarray
) -> None:
    for i in range(len(lengths)):
        rest, end = 0.0, indptr[i + 1]
        while end > indptr[i] and rest + values[end - 1] < least_shared:
            end -= 1
            rest += values[end]
        lengths[i] = end - indptr[i]


@numba.njit(nogil=True, cache=True)
def _count_prefix_columns(
    indptr: np.ndarray, columns: np.ndarray, prefix: np.ndarray, counts: np.ndarray
) -> None:
    for i in range(len(prefix)):
        for e in range(indptr[i], indptr[i] + prefix[i]):
            counts[columns[e]] += 1


@numba.njit(nogil=True, cache=True)
def _fill_prefix_columns(
    indptr: np.ndarray, columns: np.ndarray, prefix: np.ndarray, place: np.ndarray, rows: np.ndarray
) -> None:
    for i in range(len(prefix)):
        for e in range(indptr[i], indptr[i] + prefix[i]):
            rows[place[columns[e]]] = i
            place[columns[e]] += 1


@numba.njit(nogil=True, cache=True)
def _join(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    prefix: np.ndarray,
    index_indptr: np.ndarray,
    index_rows: np.ndarray,
    least_shared: float,
    limit: float,
    start: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.zeros(stop - start, dtype=np.int64)
    out_columns = np.empty(16 * (stop - start), dtype=np.int32)
    out_values = np.empty(16 * (stop - start), dtype=np.float32)
    own = np.zeros(len(prefix), dtype=np.float32)
    seen = np.full(len(prefix), -1, dtype=np.int32)
    filled = 0
    for i in range(start, stop):
        begin = filled
        for e in range(indptr[i], indptr[i + 1]):
            own[columns[e]] = values[e]
        for e in range(indptr[i], indptr[i] + prefix[i]):
            column = columns[e]
            for p in range(index_indptr[column], index_indptr[column + 1]):
                j = index_rows[p]
                if j >= i:
                    break
                if seen[j] == i:
                    continue
                seen[j] = i
                shared = np.float32(0)
                for q in range(indptr[j], indptr[j + 1]):
                    shared += min(own[columns[q]], values[q])
                distance = max(np.float32(1) - shared / (np.float32(2) - shared), np.float32(0))
                if distance <= limit:
                    out_columns = _grown(out_columns, filled + 1)
                    out_values = _grown(out_values, filled + 1)
                    out_columns[filled], out_values[filled] = j, distance
                    filled += 1
        for e in range(indptr[i], indptr[i + 1]):
            own[columns[e]] = 0
        counts[i - start] = filled - begin
    return counts, out_columns[:filled].copy(), out_values[:filled].copy()
