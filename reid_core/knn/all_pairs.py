"""Candidates for the nearest rows of every row at once, on the CPU: each product is made once.

A search by queries multiplies every pair of rows twice, as (i, j) and as (j, i). Here square tiles
of the upper triangle are multiplied, one per thread at a time and small enough for its cache, and
each tile is offered both to its rows and to its columns.

Against `faiss.knn`, end to end, in CPU seconds, which a busy machine does not change
(benchmarks/clustering.py, "Half of the products"): 1.9x to 2.2x from 10,000 to 30,000 rows.

Shapes: U rows, D feature width, T rows of a tile, c candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from reid_core.compiled import compiled
from reid_core.knn.products import Candidates

_TILE = 512  # 1 MiB of products
_CHUNK = 32  # products that are compared with the thresholds in one go
_ROOM = 2  # candidates kept before the best are selected, in multiples of c


def all_pairs_candidates(features: np.ndarray, count: int) -> Candidates:
    """The rows of the largest float32 products with each row.

    Equal products are decided by the row number, so the order of the threads does not show.

    Args:
        features: (U, D) float32.
        count: c, at most U.

    Returns:
        The candidates of every row.
    """
    num_rows = len(features)
    keys = np.empty((num_rows, _ROOM * count), dtype=np.int64)
    filled = np.zeros(num_rows, dtype=np.int32)
    least = np.full(num_rows, -np.inf, dtype=np.float32)
    least_bits = least.view(np.int32)
    starts = range(0, num_rows, _TILE)
    locks = {start: Lock() for start in starts}
    scratch = local()

    def work(corner: tuple[int, int]) -> None:
        top, left = corner
        rows, columns = features[top : top + _TILE], features[left : left + _TILE]
        if not hasattr(scratch, "products"):
            scratch.products = np.empty(_TILE * _TILE, dtype=np.float32)
        tile = scratch.products[: len(rows) * len(columns)].reshape(len(rows), len(columns))
        bits = tile.view(np.int32)
        np.matmul(rows, columns.T, out=tile)
        if top == left:
            _start_lists(bits, top, keys, filled, least_bits, count)
            return
        # the upper lock first, always: no two threads can wait for each other
        with locks[top], locks[left]:
            _offer(tile, bits, top, left, keys, filled, least, least_bits, count)

    with _one_blas_thread(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # the diagonal first: after it every row has a threshold, and few products reach it. Then
        # its neighbors, each along its length: tiles in work at a time share no lists
        for shift in range(len(starts)):
            list(pool.map(work, zip(starts, starts[shift:], strict=False)))
    return _selected(keys, filled, count, all_are_in=count == num_rows)


def across_candidates(
    first: np.ndarray, second: np.ndarray, count: int
) -> tuple[Candidates, Candidates]:
    """The rows of the largest float32 products between two sets, for both from one product.

    Args:
        first, second: (U_a, D) and (U_b, D) float32.
        count: c, at most the smaller number of rows.

    Returns:
        The candidates among `second` of each row of `first`, and the reverse.
    """
    num_first, num_rows = len(first), len(first) + len(second)
    keys = np.empty((num_rows, _ROOM * count), dtype=np.int64)
    filled = np.zeros(num_rows, dtype=np.int32)
    least = np.full(num_rows, -np.inf, dtype=np.float32)
    least_bits = least.view(np.int32)
    tops, lefts = range(0, num_first, _TILE), range(0, len(second), _TILE)
    locks = [{start: Lock() for start in starts} for starts in (tops, lefts)]
    scratch = local()

    def work(corner: tuple[int, int]) -> None:
        top, left = corner
        rows, columns = first[top : top + _TILE], second[left : left + _TILE]
        if not hasattr(scratch, "products"):
            scratch.products = np.empty(_TILE * _TILE, dtype=np.float32)
        tile = scratch.products[: len(rows) * len(columns)].reshape(len(rows), len(columns))
        np.matmul(rows, columns.T, out=tile)
        with locks[0][top], locks[1][left]:  # the first set's always first: nobody waits in a ring
            _offer(
                tile, tile.view(np.int32), top, num_first + left, keys, filled, least, least_bits,
                count,
            )  # fmt: skip

    with _one_blas_thread(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # tiles in work at a time share no lists
        for corners in _wrapped_diagonals(len(tops), len(lefts)):
            list(pool.map(work, [(tops[i], lefts[j]) for i, j in corners]))
    forth = _selected(keys[:num_first], filled[:num_first], count, all_are_in=count == len(second))
    back = _selected(keys[num_first:], filled[num_first:], count, all_are_in=count == num_first)
    return Candidates(forth.rows - np.int32(num_first), forth.least), back


def _selected(keys: np.ndarray, filled: np.ndarray, count: int, *, all_are_in: bool) -> Candidates:
    rows, bits = _selected_rows(keys, filled, count)
    return Candidates(rows, np.full(len(rows), -np.inf) if all_are_in else bits.view(np.float32))


def _wrapped_diagonals(num_rows: int, num_columns: int) -> Iterator[list[tuple[int, int]]]:
    """All places of a table, in diagonals that wrap around."""
    for shift in range(max(num_rows, num_columns)):
        if num_rows <= num_columns:
            yield [(i, (i + shift) % num_columns) for i in range(num_rows)]
        else:
            yield [((j + shift) % num_rows, j) for j in range(num_columns)]


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Within it BLAS multiplies in the calling thread, in the whole process.

    Searches overlap: the first one limits, and the last one gives back what it found then.
    """
    with _blas.lock:
        if not _blas.searches:
            _blas.limit = _controller().limit(limits=1, user_api="blas")
        _blas.searches += 1
    try:
        yield
    finally:
        with _blas.lock:
            _blas.searches -= 1
            if not _blas.searches:
                _blas.limit.restore_original_limits()


class _Blas:
    """How many searches limit BLAS now, and what they will restore."""

    def __init__(self) -> None:
        self.lock, self.searches = Lock(), 0
        self.limit: Any = None


_blas = _Blas()


@cache
def _controller() -> ThreadpoolController:
    """Looks the loaded libraries up once: it takes milliseconds."""
    return ThreadpoolController()


@compiled()
def _select(keys: np.ndarray, count: int) -> None:
    """Moves the `count` largest keys to the front, the smallest of them to place count - 1."""
    low, high = 0, len(keys) - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while keys[left] > pivot:
                left += 1
            while keys[right] < pivot:
                right -= 1
            if left <= right:
                keys[left], keys[right] = keys[right], keys[left]
                left += 1
                right -= 1
        if count - 1 <= right:
            high = right
        elif count - 1 >= left:
            low = left
        else:
            return


@compiled(inline="always")
def _rising(bits: np.int32) -> np.int32:
    """Bits of a float32 as an integer that rises with it; the same step leads back."""
    return bits ^ np.int32(0x7FFFFFFF) if bits < 0 else bits


@compiled(inline="always")
def _key(bits: np.int32, row: int) -> np.int64:
    """One integer that orders by larger product first, then by smaller row."""
    return (np.int64(_rising(bits)) << 32) | (0x7FFFFFFF - row)


@compiled(fastmath={"nnan"}, inline="always")
def _margin(row: np.ndarray, own: float, others: np.ndarray) -> np.float32:
    """Largest excess of a product over the lower of its two thresholds, made for SIMD."""
    margin = np.float32(-1)
    for c in range(len(row)):
        margin = max(margin, row[c] - min(own, others[c]))
    return margin


@compiled()
def _cut(
    keys: np.ndarray, filled: np.ndarray, least_bits: np.ndarray, owner: int, count: int
) -> None:
    """Cuts a full list to its best, the worst of which becomes the row's threshold."""
    _select(keys[owner], count)
    filled[owner] = count
    least_bits[owner] = _rising(np.int32(keys[owner, count - 1] >> 32))


@compiled()
def _start_lists(
    bits: np.ndarray,
    top: int,
    keys: np.ndarray,
    filled: np.ndarray,
    least_bits: np.ndarray,
    count: int,
) -> None:
    """Begins the lists of a diagonal tile's rows with the best of the tile."""
    width = bits.shape[1]
    own = np.empty(width, dtype=np.int64)
    for r in range(bits.shape[0]):
        for c in range(width):
            own[c] = _key(bits[r, c], top + c)
        _select(own, count)
        filled[top + r] = min(width, count)
        for c in range(filled[top + r]):
            keys[top + r, c] = own[c]
        if width >= count:
            least_bits[top + r] = _rising(np.int32(own[count - 1] >> 32))


@compiled()
def _offer(
    tile: np.ndarray,
    bits: np.ndarray,
    top: int,
    left: int,
    keys: np.ndarray,
    filled: np.ndarray,
    least: np.ndarray,
    least_bits: np.ndarray,
    count: int,
) -> None:
    """Adds the products that reach a threshold to the lists of their row and of their column.

    `bits` and `least_bits` are the same memory as `tile` and `least`, seen as integers.
    """
    num_columns, room = tile.shape[1], keys.shape[1]
    for r in range(tile.shape[0]):
        row, i = tile[r], top + r
        for first in range(0, num_columns, _CHUNK):
            last = min(first + _CHUNK, num_columns)
            if _margin(row[first:last], least[i], least[left + first : left + last]) < 0:
                continue
            for c in range(first, last):
                j = left + c
                if row[c] >= least[i]:
                    keys[i, filled[i]] = _key(bits[r, c], j)
                    filled[i] += 1
                    if filled[i] == room:
                        _cut(keys, filled, least_bits, i, count)
                if row[c] >= least[j]:
                    keys[j, filled[j]] = _key(bits[r, c], i)
                    filled[j] += 1
                    if filled[j] == room:
                        _cut(keys, filled, least_bits, j, count)


@compiled()
def _selected_rows(
    keys: np.ndarray, filled: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the `count` best keys, and the bits of the least of their products."""
    rows = np.empty((len(keys), count), dtype=np.int32)
    least_bits = np.empty(len(keys), dtype=np.int32)
    for i in range(len(keys)):
        _select(keys[i, : filled[i]], count)
        for c in range(count):
            rows[i, c] = 0x7FFFFFFF - (keys[i, c] & 0x7FFFFFFF)
        least_bits[i] = _rising(np.int32(keys[i, count - 1] >> 32))
    return rows, least_bits
