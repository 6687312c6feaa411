"""Products of feature rows, computed where the features are: float32 to find, float64 to decide.

Shapes: N rows, B query rows, D feature width, c candidates, M pairs.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from reid_core.knn.threads import over_blocks

try:
    import faiss
except ImportError:  # without either faiss extra, torch searches
    faiss = None  # type: ignore[assignment]

Features = np.ndarray | Tensor

_DEVICE_BYTES = 1 << 30  # size of one similarity block, or of one gather, on a device
_THREAD_ROWS = 512
_THREAD_PAIRS = 16384
_MAX_NORM_ERROR = 1e-2  # bfloat16 rows normalized in bfloat16 are off by 4e-3


def unit_rows(features: Features) -> Features:
    """The features as contiguous float32, after a check that each row has unit length.

    Args:
        features: (N, D), array or tensor, CPU or CUDA.

    Raises:
        ValueError: no row at all; or names the first row that is zero, not finite or not of unit
            length.
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features have shape {tuple(features.shape)}; at least one row is needed")
    if isinstance(features, Tensor):
        features = features.detach().float().contiguous()
        norms = features.norm(dim=1).cpu().numpy()
    else:
        features = np.ascontiguousarray(features, dtype=np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", features, features))
    wrong = ~(np.abs(norms - 1) <= _MAX_NORM_ERROR)
    if wrong.any():
        row = int(np.argmax(wrong))
        reason = (
            "is zero: the image or caption gave no feature"
            if norms[row] == 0
            else f"has length {norms[row]:.4g}: normalize the features"
        )
        raise ValueError(f"feature row {row} {reason} ({int(wrong.sum())} such rows)")
    return features


def on_device(features: Features) -> bool:
    """Whether the features lie on an accelerator."""
    return isinstance(features, Tensor) and features.device.type != "cpu"


def on_host(features: Features) -> np.ndarray:
    """The features as an array; no copy unless they lie on an accelerator."""
    return features.cpu().numpy() if isinstance(features, Tensor) else features


def take(features: Features, rows: np.ndarray) -> Features:
    """The given rows, of the same kind and on the same device."""
    if isinstance(features, Tensor):
        return features[torch.from_numpy(rows.astype(np.int64)).to(features.device)]
    return features[rows]


def largest_products(queries: Features, features: Features, count: int) -> np.ndarray:
    """Rows of the largest float32 products with each query.

    Args:
        queries: (B, D), features: (N, D), both of one kind and device.
        count: c, at most N.

    Returns:
        int32 (B, c), in no particular order.
    """
    if faiss is None or on_device(features):
        return _topk(torch.as_tensor(queries), torch.as_tensor(features), count)
    _, rows = faiss.knn(
        on_host(queries), on_host(features), count, metric=faiss.METRIC_INNER_PRODUCT
    )
    return rows.astype(np.int32)


def exact_products(queries: Features, features: Features, candidates: np.ndarray) -> np.ndarray:
    """Products with each query's candidates, summed in one order whatever the block.

    Args:
        queries: (B, D), features: (N, D), both of one kind and device.
        candidates: int32 (B, c) rows of features.

    Returns:
        float64 (B, c).
    """
    exact = np.empty(candidates.shape, dtype=np.float64)
    if on_device(features):
        step = max(1, _DEVICE_BYTES // (8 * candidates.shape[1] * features.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            near = torch.as_tensor(take(features, candidates[part])).double()
            own = torch.as_tensor(queries[part]).double()
            exact[part] = (near * own[:, None]).sum(dim=2).cpu().numpy()
        return exact
    own_rows, every = on_host(queries), on_host(features)

    def work(start: int, stop: int) -> None:
        _products(own_rows[start:stop], every, candidates[start:stop], exact[start:stop])

    over_blocks(work, len(own_rows), _THREAD_ROWS)
    return exact


def products_of_pairs(features: Features, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products of given pairs of rows.

    Args:
        features: (N, D).
        first, second: (M,) row numbers.

    Returns:
        float32 (M,).
    """
    out = np.empty(len(first), dtype=np.float32)
    if on_device(features):
        step = max(1, _DEVICE_BYTES // (8 * features.shape[1]))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            a, b = take(features, first[part]), take(features, second[part])
            out[part] = torch.as_tensor((a * b).sum(1)).cpu().numpy()
        return out
    host = on_host(features)

    def work(start: int, stop: int) -> None:
        _pair_products(host, first[start:stop], second[start:stop], out[start:stop])

    over_blocks(work, len(first), _THREAD_PAIRS)
    return out


def _topk(queries: Tensor, features: Tensor, count: int) -> np.ndarray:
    """Product and topk over chunks of the rows, merged: bounded memory on any device."""
    step = max(count, _DEVICE_BYTES // (4 * len(queries)))
    best_value = queries.new_empty((len(queries), 0))
    best_row = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(features), step):
        with torch.autocast(queries.device.type, enabled=False):  # half precision finds others
            product = queries @ features[start : start + step].T
        value, row = product.topk(min(count, product.shape[1]), dim=1, sorted=False)
        best_value = torch.cat([best_value, value], dim=1)
        best_row = torch.cat([best_row, row + start], dim=1)
        if best_value.shape[1] > count:
            best_value, kept = best_value.topk(count, dim=1, sorted=False)
            best_row = best_row.gather(1, kept)
    return best_row.int().cpu().numpy()


@numba.njit(nogil=True, cache=True, fastmath=True)
def _products(
    queries: np.ndarray, features: np.ndarray, candidates: np.ndarray, out: np.ndarray
) -> None:
    query = np.empty(features.shape[1])
    for i in range(candidates.shape[0]):
        for d in range(len(query)):
            query[d] = queries[i, d]
        for c in range(candidates.shape[1]):
            total = 0.0
            row = features[candidates[i, c]]
            for d in range(len(query)):
                total += query[d] * row[d]
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
