"""Nearest neighbours by cosine: exact, the same for any split of the queries, self first.

Shapes: N rows, U distinct rows, D feature width, k neighbours.

The search itself runs in float32 (faiss on the CPU; matrix product and topk where the tensor lies
on CUDA or faiss is not installed), whose rounding moves with the shape of the product. So a few
more candidates than asked for are taken, scored again in float64 and ordered by (similarity, row),
and the queries always go in the same blocks, whoever computes which. Rows that are equal to the
last bit (captions have many) are searched once: they would fill the candidates with ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from reid_core.equal_rows import Features, find_equal_rows, spread_to_equal_rows
from reid_core.threads import over_blocks

try:
    import faiss
except ImportError:  # without either faiss extra, torch searches
    faiss = None  # type: ignore[assignment]

_QUERY_BLOCK = 1024  # rows of one search call; part of the result's definition, see above
_EXTRA_CANDIDATES = 8
_THREAD_ROWS = 64
_DEVICE_BYTES = 1 << 30  # size of one similarity block, or of one gather, on a device
_MAX_NORM_ERROR = 1e-2  # bfloat16 rows normalised in bfloat16 are off by 4e-3


@dataclass(frozen=True)
class Neighbours:
    """Nearest rows of each row.

    Attributes:
        rows: (N, k) int32; the row itself first, then by (distance, row).
        similarity: (N, k) float32 cosines.
    """

    rows: np.ndarray
    similarity: np.ndarray


class NeighbourSearch:
    """A search for the k nearest rows of every row, cut into blocks that can run anywhere.

    `nearest` runs all blocks in a loop; `pipelines` spreads them over tasks. The neighbours are
    the same for any split.

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
        features = unit_rows(features)
        self._num_rows = len(features)
        self._k = min(k, self._num_rows)
        self._groups = find_equal_rows(features)
        first = self._groups.first
        self._features = features if len(first) == len(features) else features[first]
        self.num_blocks = -(-len(first) // _QUERY_BLOCK)

    def run(self, block: int) -> Neighbours:
        """Neighbours of one block of distinct rows among the distinct rows, for `join`."""
        start = block * _QUERY_BLOCK
        queries = self._features[start : start + _QUERY_BLOCK]
        count = min(self._k + _EXTRA_CANDIDATES, len(self._features))
        candidates = _candidates(queries, self._features, count)
        own = np.arange(start, start + len(queries))
        return _best(candidates, own, queries, self._features, self._k)

    def join(self, blocks: Sequence[Neighbours]) -> Neighbours:
        """Neighbours of all N rows.

        Args:
            blocks: the results of `run` for all blocks, in order.
        """
        rows = np.concatenate([block.rows for block in blocks])
        similarity = np.concatenate([block.similarity for block in blocks])
        groups = self._groups
        if len(groups.first) < self._num_rows:
            rows, similarity = spread_to_equal_rows(groups, rows, similarity, self._k)
        return Neighbours(rows, similarity.astype(np.float32))


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
    search = NeighbourSearch(features, k)
    return search.join([search.run(block) for block in range(search.num_blocks)])


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
        Rows and cosines (N, min(k, N)). Where the visited lists hold fewer than k rows, the row
        itself fills up.

    Raises:
        ValueError: as `NeighbourSearch`; also without faiss.
    """
    if faiss is None:
        raise ValueError("the approximate search needs faiss: install the extra 'cpu' or 'gpu'")
    host = _host(unit_rows(features))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(host.shape[1]), host.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = seed
    index.train(host)
    index.add(host)
    index.nprobe = num_probes
    _, found = index.search(host, min(k + _EXTRA_CANDIDATES, len(host)))
    own = np.arange(len(host))
    candidates = np.where(found < 0, own[:, None], found).astype(np.int32)
    best = _best(candidates, own, host, host, min(k, len(host)))
    return Neighbours(best.rows, best.similarity.astype(np.float32))


def recall(found: Neighbours, exact: Neighbours) -> float:
    """Share of the exact neighbours, self not counted, that were found."""
    if exact.rows.shape[1] == 1:
        return 1.0
    hits = (found.rows[:, 1:, None] == exact.rows[:, None, 1:]).any(axis=1)
    return float(hits.mean())


def nearest_from_both(features: Features, is_second: np.ndarray, k: int) -> Neighbours:
    """k nearest rows, half of them from each of two modalities, own and other in turn.

    A row's list is: itself, nearest of the other modality, second of its own, second of the other
    and so on, so that every beginning of the list is balanced, whatever is cut from it later.

    Args:
        features: (N, D) unit rows of both modalities.
        is_second: (N,) bool, which rows belong to the second modality.
        k: neighbours per row, the row itself included, even and 2 or above.

    Returns:
        Rows and cosines (N, k).

    Raises:
        ValueError: k is odd, or a modality has fewer than k / 2 rows; and as `NeighbourSearch`.

    Reconstruction: the balanced selection that BMIL is reported to use; its order is ours.
    """
    if k < 2 or k % 2:
        raise ValueError(f"k is {k}; it must be even to take half from each modality")
    features = unit_rows(features)
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
        for column, side in ((0, own), (1, other)):
            found = _nearest_among(features, own, side, k // 2)
            out.rows[own, column::2] = found.rows
            out.similarity[own, column::2] = found.similarity
    return out


def similarity_of_pairs(features: Features, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of given pairs of rows, computed where the features are.

    Args:
        features: (N, D) unit rows.
        first, second: (M,) row numbers.

    Returns:
        float32 (M,) on the host.
    """
    out = np.empty(len(first), dtype=np.float32)
    if isinstance(features, Tensor) and features.is_cuda:
        step = max(1, _DEVICE_BYTES // (8 * features.shape[1]))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            a, b = features[_on(features, first[part])], features[_on(features, second[part])]
            out[part] = (a * b).sum(dim=1).cpu().numpy()
        return out
    host = _host(features)

    def work(start: int, stop: int) -> None:
        _pair_products(host, first[start:stop], second[start:stop], out[start:stop])

    over_blocks(work, len(first), 64 * _THREAD_ROWS)
    return out


def unit_rows(features: Features) -> Features:
    """The features as contiguous float32, after a check that each row has unit length.

    Raises:
        ValueError: names the first row that is zero, not finite or not of unit length.
    """
    if isinstance(features, Tensor):
        features = features.detach().float().contiguous()
        norms = features.norm(dim=1).cpu().numpy()
    else:
        features = np.ascontiguousarray(features, dtype=np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", features, features))
    wrong = ~(np.abs(norms - 1) <= _MAX_NORM_ERROR)
    if wrong.any():
        row = int(np.argmax(wrong))
        reason = "is zero: the image or caption gave no feature" if norms[row] == 0 else (
            f"has length {norms[row]:.4g}: normalise the features"
        )  # fmt: skip
        raise ValueError(f"feature row {row} {reason} ({int(wrong.sum())} such rows)")
    return features


def _candidates(queries: Features, features: Features, count: int) -> np.ndarray:
    """(B, count) int32 rows of the largest float32 products, in no particular order."""
    if faiss is None or (isinstance(features, Tensor) and features.is_cuda):
        return _topk(torch.as_tensor(queries), torch.as_tensor(features), count)
    _, rows = faiss.knn(_host(queries), _host(features), count, metric=faiss.METRIC_INNER_PRODUCT)
    return rows.astype(np.int32)


def _topk(queries: Tensor, features: Tensor, count: int) -> np.ndarray:
    """Product and topk over chunks of the rows, merged: bounded memory on any device."""
    step = max(count, _DEVICE_BYTES // (4 * len(queries)))
    best_value = queries.new_empty((len(queries), 0))
    best_row = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(features), step):
        product = queries @ features[start : start + step].T
        value, row = product.topk(min(count, product.shape[1]), dim=1, sorted=False)
        best_value = torch.cat([best_value, value], dim=1)
        best_row = torch.cat([best_row, row + start], dim=1)
        if best_value.shape[1] > count:
            best_value, kept = best_value.topk(count, dim=1, sorted=False)
            best_row = best_row.gather(1, kept)
    return best_row.int().cpu().numpy()


def _exact_similarity(queries: Features, features: Features, candidates: np.ndarray) -> np.ndarray:
    """(B, c) float64 products, each summed in the same order whatever the block."""
    if isinstance(features, Tensor) and features.is_cuda:
        out = []
        step = max(1, _DEVICE_BYTES // (8 * candidates.shape[1] * features.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            near = features[_on(features, candidates[part])].double()
            products = near * torch.as_tensor(queries[part, None]).double()
            out.append(products.sum(dim=2).cpu().numpy())
        return np.concatenate(out)
    exact = np.empty(candidates.shape, dtype=np.float64)
    own, every = _host(queries), _host(features)

    def work(start: int, stop: int) -> None:
        _products(own[start:stop], every, candidates[start:stop], exact[start:stop])

    over_blocks(work, len(own), _THREAD_ROWS)
    return exact


def _best(
    candidates: np.ndarray, own: np.ndarray, queries: Features, features: Features, k: int
) -> Neighbours:
    """The k best candidates, each row's own number first, then by (float64 similarity, row)."""
    # every row is a candidate of its own: rounding may rank many rows above it, and an
    # approximate list may lack it
    missing = ~(candidates == own[:, None]).any(axis=1)
    candidates[missing, -1] = own[missing]
    exact = _exact_similarity(queries, features, candidates)
    _order(candidates, exact, own)
    return Neighbours(np.ascontiguousarray(candidates[:, :k]), np.ascontiguousarray(exact[:, :k]))


def _nearest_among(
    features: Features, queries: np.ndarray, among: np.ndarray, k: int
) -> Neighbours:
    """k nearest of the rows `among` for each of the rows `queries`, as row numbers of features."""
    own, pool = features[_on(features, queries)], features[_on(features, among)]
    out = Neighbours(
        np.empty((len(queries), k), dtype=np.int32), np.empty((len(queries), k), dtype=np.float32)
    )
    for start in range(0, len(queries), _QUERY_BLOCK):
        part = slice(start, start + _QUERY_BLOCK)
        local = _candidates(own[part], pool, min(k + _EXTRA_CANDIDATES, len(among)))
        exact = _exact_similarity(own[part], pool, local)
        candidates = among[local].astype(np.int32)
        _order(candidates, exact, queries[part])
        out.rows[part], out.similarity[part] = candidates[:, :k], exact[:, :k]
    return out


def _host(features: Features) -> np.ndarray:
    return features.cpu().numpy() if isinstance(features, Tensor) else features


def _on(features: Features, rows: np.ndarray) -> np.ndarray | Tensor:
    """Row numbers as an index of the features' kind and device."""
    if isinstance(features, Tensor):
        return torch.from_numpy(rows.astype(np.int64)).to(features.device)
    return rows


@numba.njit(nogil=True, cache=True, fastmath=True)
def _products(
    queries: np.ndarray, features: np.ndarray, candidates: np.ndarray, out: np.ndarray
) -> None:
    for i in range(candidates.shape[0]):
        for c in range(candidates.shape[1]):
            total = 0.0
            row = features[candidates[i, c]]
            for d in range(features.shape[1]):
                total += np.float64(queries[i, d]) * np.float64(row[d])
            out[i, c] = total


@numba.njit(nogil=True, cache=True, fastmath=True)
def _pair_products(
    features: np.ndarray, first: np.ndarray, second: np.ndarray, out: np.ndarray
) -> None:
    for m in range(len(first)):
        total = np.float32(0)
        a, b = features[first[m]], features[second[m]]
        for d in range(features.shape[1]):
            total += a[d] * b[d]
        out[m] = total


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
