"""Unit rows where they are, and the largest float32 products with them.

Shapes: N rows, B query rows, D feature width, c candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

try:
    import faiss
except ImportError:  # without either faiss extra, torch searches
    faiss = None  # type: ignore[assignment]

Features = np.ndarray | Tensor
Propose = Callable[[Features, Features, int], "Candidates"]
"""Candidates of queries among rows, so many of each: `largest_products`, or what stands for it."""

_DEVICE_BYTES = 1 << 30  # size of one similarity block, on a device
_MAX_NORM_ERROR = 1e-2  # bfloat16 rows normalized in bfloat16 are off by 4e-3
LONGEST = 1 + _MAX_NORM_ERROR  # length of a row that `unit_rows` accepts


@dataclass(frozen=True)
class Candidates:
    """Rows that may be the nearest ones of each query.

    Attributes:
        rows: int32 (B, c), in no particular order.
        least: float32 (B,), no absent row has a larger float32 product; -inf where none is absent.
    """

    rows: np.ndarray
    least: np.ndarray


def unit_rows(features: Features) -> Features:
    """The features as contiguous float32, after a check that each row has unit length.

    Args:
        features: (N, D), array or tensor, CPU or CUDA.

    Raises:
        ValueError: no numbers, no row at all; or names the first row that is zero, not finite or
            not of unit length.
    """
    if not isinstance(features, Tensor) and np.asarray(features).dtype.kind not in "fiu":
        raise ValueError("features are no array of numbers: give (N, D) float32")
    features = features if isinstance(features, Tensor) else np.asarray(features)
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
        if norms[row] == 0:
            reason = "is zero: the image or caption gave no feature"
        elif np.isfinite(norms[row]):
            reason = f"has length {norms[row]:.4g}: normalize the features"
        else:
            reason = "is not finite: the model has diverged, or the input was damaged"
        raise ValueError(f"feature row {row} {reason} ({int(wrong.sum())} such rows)")
    return features


def on_device(features: Features) -> bool:
    """Whether the features lie on an accelerator."""
    return isinstance(features, Tensor) and features.device.type != "cpu"


def on_host(features: Features) -> np.ndarray:
    """The features as an array; no copy unless they lie on an accelerator."""
    return features.cpu().numpy() if isinstance(features, Tensor) else features


def take(features: Features, rows: np.ndarray) -> Features:
    """The given rows, of the same kind and on the same device; consecutive ones are a view."""
    if len(rows) and (np.diff(rows) == 1).all():
        return features[int(rows[0]) : int(rows[-1]) + 1]
    if isinstance(features, Tensor):
        return features[torch.from_numpy(rows.astype(np.int64)).to(features.device)]
    taken: np.ndarray = features[rows]
    return taken


def stacked(parts: Sequence[Features]) -> Features:
    """Parts one after the other: a view of tensors that already lie so, a copy of others.

    Args:
        parts: (n, D) each, of one kind and device.
    """
    if not all(isinstance(part, Tensor) for part in parts):
        return np.concatenate([on_host(part) for part in parts])
    tensors = [torch.as_tensor(part) for part in parts]
    first, end = tensors[0], tensors[0].storage_offset()
    for part in tensors:
        memory = part.untyped_storage().data_ptr(), part.storage_offset()
        if not part.is_contiguous() or memory != (first.untyped_storage().data_ptr(), end):
            return torch.cat(tensors)
        end += part.numel()
    return first.as_strided((sum(map(len, tensors)), first.shape[1]), first.stride())


def largest_products(queries: Features, features: Features, count: int) -> Candidates:
    """Candidates for the largest products with each query, by products in float32.

    Args:
        queries: (B, D), features: (N, D), both of one kind and device.
        count: c, at most N.
    """
    if faiss is None or on_device(features):
        value, row = _topk(torch.as_tensor(queries), torch.as_tensor(features), count)
        rows, least = row.int().cpu().numpy(), value.amin(dim=1).cpu().numpy()
    else:
        values, numbers = faiss.knn(
            on_host(queries), on_host(features), count, metric=faiss.METRIC_INNER_PRODUCT
        )
        rows, least = numbers.astype(np.int32), values[:, -1]
    return Candidates(rows, np.full(len(rows), -np.inf) if count == len(features) else least)


def largest_in_batches(
    queries: np.ndarray, batches: Iterable[np.ndarray], count: int
) -> np.ndarray:
    """The largest products of queries with rows that come some at a time, in one pass over them.

    Args:
        queries: (B, D) float32.
        batches: of rows, (n, D) float32 each; one is kept at a time.
        count: of products per query.

    Returns:
        (B, c) float32, falling; c is the number of all rows where that is less than `count`.
    """
    best = np.empty((len(queries), 0), np.float32)
    for batch in batches:
        best = np.concatenate([best, queries @ batch.T], axis=1)
        if best.shape[1] > count:
            best = np.partition(best, -count, axis=1)[:, -count:]
    largest: np.ndarray = -np.sort(-best, axis=1)
    return largest


def _topk(queries: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
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
            best_value, remaining = best_value.topk(count, dim=1, sorted=False)
            best_row = best_row.gather(1, remaining)
    return best_value, best_row
