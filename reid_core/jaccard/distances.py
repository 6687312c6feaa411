"""Jaccard distances between sparse weight rows, only those below a limit, as a sparse graph.

Shapes: N rows, E stored entries. d(i, j) = 1 - s / (2 - s), clipped at 0, with the shared weight
s = sum over k of min(V_ik, V_jk) of two rows that each sum to 1.

A limit on d is a lower limit on s, and that saves most of the work. Row i leaves out of its walk
through the columns those that are long and weigh little, together less than the limit; rows whose
shared weight in the other columns cannot reach the limit any more are dropped, and only the few
that are left are summed over the columns left out.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array

from reid_core.compiled import compiled
from reid_core.jaccard.reciprocal import SparseRows, grown, offsets, rows_per_block
from reid_core.knn.threads import over_blocks

_SLACK = 1e-5  # float32 sums of a few hundred weights are off by less
_CLASSES = 64  # weights above 2^-32 and columns below 2^31 fit
_LEFT_OUT = 0.85  # share of the lower limit; less means longer walks, more means more sums


def jaccard_distances(weights: SparseRows, *, max_distance: float) -> csr_array:
    """All distances of at most `max_distance`.

    Args:
        weights: V, N sparse rows that each sum to 1.
        max_distance: in [0, 1]; at 1 every pair that shares anything is kept.

    Returns:
        float32 CSR (N, N), symmetric, columns sorted. Every kept entry is stored, zeros and the
        diagonal (0) too.
    """
    least_shared = max(2 * (1 - max_distance) / (2 - max_distance) - _SLACK, 0.0)
    limit = float(np.float32(max_distance))  # the distances are float32 as well
    index, num_earlier = _transposed(weights)

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _close_pairs(
            weights.indptr, weights.columns, weights.values, num_earlier,
            index.indptr, index.columns, index.values, least_shared, limit, start, stop,
        )  # fmt: skip

    return _symmetric(
        SparseRows.joined(over_blocks(work, len(weights), rows_per_block(len(weights))))
    )


def _transposed(rows: SparseRows) -> tuple[SparseRows, np.ndarray]:
    """Columns as rows, ascending within; and per entry how many earlier rows have its column."""
    indptr = offsets(np.bincount(rows.columns, minlength=len(rows)))
    index = SparseRows(indptr, np.empty_like(rows.columns), np.empty_like(rows.values))
    num_earlier = np.empty_like(rows.columns)
    _transpose(
        rows.indptr, rows.columns, rows.values, indptr,
        index.columns, index.values, num_earlier, np.zeros(len(rows), dtype=np.int32),
    )  # fmt: skip
    return index, num_earlier


def _symmetric(lower: SparseRows) -> csr_array:
    """Both triangles and the zero diagonal from the strictly lower triangle, columns sorted."""
    upper, _ = _transposed(lower)
    lower, _ = _transposed(upper)  # twice transposed is sorted
    indptr = offsets(np.diff(lower.indptr) + np.diff(upper.indptr) + 1)
    indices = np.empty(indptr[-1], dtype=np.int32 if indptr[-1] < 2**31 else np.int64)
    data = np.empty(indptr[-1], dtype=np.float32)
    _interleave(
        lower.indptr, lower.columns, lower.values,
        upper.indptr, upper.columns, upper.values, indptr, indices, data,
    )  # fmt: skip
    return csr_array((data, indices, indptr), shape=(len(lower), len(lower)))


@compiled()
def _transpose(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    index_indptr: np.ndarray,
    index_rows: np.ndarray,
    index_values: np.ndarray,
    num_earlier: np.ndarray,
    filled: np.ndarray,
) -> None:
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            column = columns[e]
            place = index_indptr[column] + filled[column]
            index_rows[place], index_values[place] = i, values[e]
            num_earlier[e] = filled[column]
            filled[column] += 1


@compiled()
def _choose_left_out(
    columns: np.ndarray,
    values: np.ndarray,
    index_indptr: np.ndarray,
    allowed: float,
    is_left_out: np.ndarray,
) -> float:
    """Marks which of a row's columns its walk leaves out, and returns what they weigh.

    The first to go are those with the most rows to meet per weight, in classes of a factor of two.
    `is_left_out` holds the classes in between.
    """
    weight_of_class = np.zeros(_CLASSES, dtype=np.float64)
    for e in range(len(columns)):
        is_left_out[e] = _class(columns[e], values[e], index_indptr)
        weight_of_class[is_left_out[e]] += values[e]
    last, weight = _CLASSES, 0.0
    while last > 0 and weight + weight_of_class[last - 1] <= allowed:
        last -= 1
        weight += weight_of_class[last]
    for e in range(len(columns)):
        own = is_left_out[e]
        # of the first class that does not fit as a whole, as many as fit
        partly = own == last - 1 and weight + values[e] <= allowed
        if partly:
            weight += values[e]
        is_left_out[e] = partly or own >= last
    return weight


@compiled()
def _class(column: int, value: float, index_indptr: np.ndarray) -> int:
    """Logarithm of the rows that a column makes one meet per weight, in 0 ... _CLASSES - 1."""
    met_per_weight = (index_indptr[column + 1] - index_indptr[column]) / value
    return min(int(math.log2(met_per_weight)), _CLASSES - 1)


@compiled(inline="always")
def _walk(
    first: int,
    last: int,
    columns: np.ndarray,
    values: np.ndarray,
    num_earlier: np.ndarray,
    is_left_out: np.ndarray,
    index_indptr: np.ndarray,
    index_rows: np.ndarray,
    index_values: np.ndarray,
    shared: np.ndarray,
    met: np.ndarray,
) -> int:
    """Adds up in `shared` what earlier rows share with a row's entries first ... last - 1.

    Returns how many rows were `met`. Inlined: the compiler sees that no two arrays overlap.
    """
    num_met = 0
    for e in range(first, last):
        column, value = columns[e], values[e]
        if is_left_out[e - first]:
            continue
        begin = index_indptr[column]
        for p in range(begin, begin + num_earlier[e]):
            j = index_rows[p]
            # written every time and counted the first time: a branch would be a guess
            met[num_met] = j
            num_met += shared[j] == 0
            shared[j] += min(value, index_values[p])
    return num_met


@compiled(inline="always")
def _distance(
    shared: np.float32,
    left_out: np.ndarray,
    first: int,
    last: int,
    columns: np.ndarray,
    values: np.ndarray,
) -> np.float32:
    """Distance to the row of entries first ... last - 1, given what the walk found shared."""
    for e in range(first, last):
        shared += min(left_out[columns[e]], values[e])
    return max(np.float32(1) - shared / (np.float32(2) - shared), np.float32(0))


@compiled()
def _close_pairs(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    num_earlier: np.ndarray,
    index_indptr: np.ndarray,
    index_rows: np.ndarray,
    index_values: np.ndarray,
    least_shared: float,
    limit: float,
    start: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j < i) of a block of rows i: how many per row, each j and its distance."""
    counts = np.zeros(stop - start, dtype=np.int64)
    out_rows = np.empty(16 * (stop - start), dtype=np.int32)
    out_values = np.empty(16 * (stop - start), dtype=np.float32)
    shared = np.zeros(len(indptr) - 1, dtype=np.float32)
    left_out = np.zeros(len(indptr) - 1, dtype=np.float32)
    is_left_out = np.empty(len(indptr) - 1, dtype=np.int8)
    met = np.empty(len(indptr), dtype=np.int32)
    filled = 0
    for i in range(start, stop):
        first, last, begin = indptr[i], indptr[i + 1], filled
        weight = _choose_left_out(
            columns[first:last],
            values[first:last],
            index_indptr,
            _LEFT_OUT * least_shared,
            is_left_out,
        )
        for e in range(first, last):
            left_out[columns[e]] = values[e] if is_left_out[e - first] else 0
        num_met = _walk(
            first, last, columns, values, num_earlier, is_left_out,
            index_indptr, index_rows, index_values, shared, met,
        )  # fmt: skip
        for m in range(num_met):
            j = met[m]
            total, shared[j] = shared[j], 0
            if total + weight < least_shared:
                continue
            distance = _distance(total, left_out, indptr[j], indptr[j + 1], columns, values)
            if distance <= limit:
                out_rows, out_values = grown(out_rows, filled + 1), grown(out_values, filled + 1)
                out_rows[filled], out_values[filled] = j, distance
                filled += 1
        for e in range(first, last):
            left_out[columns[e]] = 0
        counts[i - start] = filled - begin
    return counts, out_rows[:filled].copy(), out_values[:filled].copy()


@compiled()
def _interleave(
    lower_indptr: np.ndarray,
    lower_columns: np.ndarray,
    lower_values: np.ndarray,
    upper_indptr: np.ndarray,
    upper_columns: np.ndarray,
    upper_values: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
) -> None:
    for i in range(len(indptr) - 1):
        place = indptr[i]
        for e in range(lower_indptr[i], lower_indptr[i + 1]):
            indices[place], data[place] = lower_columns[e], lower_values[e]
            place += 1
        indices[place], data[place] = i, 0
        place += 1
        for e in range(upper_indptr[i], upper_indptr[i + 1]):
            indices[place], data[place] = upper_columns[e], upper_values[e]
            place += 1
