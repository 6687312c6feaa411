"""Products of feature rows as fixed-point sums: the same bits on every machine and device.

Shapes: N rows, B query rows, D feature width, c candidates, M pairs.

A product of two float32 numbers is exact in float64. Each is rounded to a multiple of 2^-50, and
sums of those are exact, so no order of the summation, no width of a vector unit and no GPU changes
the result. Against the real product of two unit rows it is off by at most D * 2^-51.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reid_core.compiled import compiled
from reid_core.knn import products
from reid_core.knn.products import Features
from reid_core.knn.threads import over_blocks

_DEVICE_BYTES = 1 << 29  # size of the products of one gather on a device
_THREAD_ROWS = 512
_THREAD_PAIRS = 16384

# x + 6 lies between 4 and 8, where doubles are 2^-50 apart, for every product x of two rows of
# length 1.01. Its bits, taken for an integer, are those of 6 and the multiple of 2^-50.
_SHIFT = 6.0
_SHIFT_BITS = int(np.float64(_SHIFT).view(np.int64))
_UNIT = 2.0**-50


def exact_products(queries: Features, features: Features, candidates: np.ndarray) -> np.ndarray:
    """Products with each query's candidates.

    Args:
        queries: (B, D), features: (N, D), both of one kind and device, unit rows.
        candidates: int32 (B, c) rows of features.

    Returns:
        float64 (B, c).
    """
    if products.on_device(features):
        rows = torch.from_numpy(candidates.astype(np.int64)).to(torch.as_tensor(features).device)
        asked, every = torch.as_tensor(queries), torch.as_tensor(features)
        return products_on_device(asked, every, rows).cpu().numpy()
    exact = np.empty(candidates.shape, dtype=np.float64)
    asked_rows, every_row = products.on_host(queries), products.on_host(features)

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        _products(asked_rows[part], every_row, candidates[part], _SHIFT_BITS, exact[part])

    over_blocks(work, len(asked_rows), _THREAD_ROWS)
    return exact


def products_on_device(queries: Tensor, features: Tensor, candidates: Tensor) -> Tensor:
    """`exact_products` of tensors, left on their device; candidates int64."""
    width = features.shape[1]
    step = max(1, _DEVICE_BYTES // (8 * candidates.shape[1] * width))
    parts = zip(queries.split(step), candidates.split(step), strict=True)
    return torch.cat([_sums(own[:, None], features[near]) for own, near in parts])


def products_of_pairs(features: Features, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products of given pairs of rows.

    Args:
        features: (N, D) unit rows.
        first, second: (M,) row numbers.

    Returns:
        float32 (M,).
    """
    if products.on_device(features):
        rows = torch.as_tensor(features)
        a, b = (torch.from_numpy(side.astype(np.int64)).to(rows.device) for side in (first, second))
        step = max(1, _DEVICE_BYTES // (8 * rows.shape[1]))
        parts = [_sums(rows[i], rows[j]) for i, j in zip(a.split(step), b.split(step), strict=True)]
        return torch.cat(parts).float().cpu().numpy()
    out = np.empty(len(first), dtype=np.float32)
    host = products.on_host(features)

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        _pair_products(host, first[part], second[part], _SHIFT_BITS, out[part])

    over_blocks(work, len(first), _THREAD_PAIRS)
    return out


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Sums over the last dimension of a * b, as float64."""
    # one of the two as float64: the product is then made in it, without a copy of the larger one
    bits = (a.double() * b).add_(_SHIFT).view(torch.int64).sum(dim=-1)
    return (bits - _wrapped(b.shape[-1])).double() * _UNIT


def _wrapped(width: int) -> int:
    """What the bits of 6, D times, add up to in 64 bits."""
    return (width * _SHIFT_BITS + 2**63) % 2**64 - 2**63


@compiled()
def _products(
    queries: np.ndarray,
    features: np.ndarray,
    candidates: np.ndarray,
    shift_bits: int,
    out: np.ndarray,
) -> None:
    width = features.shape[1]
    query = np.empty(width)
    for i in range(candidates.shape[0]):
        for d in range(width):
            query[d] = queries[i, d]
        for c in range(candidates.shape[1]):
            total = np.int64(0)
            row = features[candidates[i, c]]
            for d in range(width):
                total += np.float64(query[d] * row[d] + 6.0).view(np.int64)
            out[i, c] = (total - width * shift_bits) * 2.0**-50


@compiled()
def _pair_products(
    features: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    shift_bits: int,
    out: np.ndarray,
) -> None:
    width = features.shape[1]
    for m in range(len(first)):
        total = np.int64(0)
        a, b = features[first[m]], features[second[m]]
        for d in range(width):
            total += np.float64(np.float64(a[d]) * np.float64(b[d]) + 6.0).view(np.int64)
        out[m] = (total - width * shift_bits) * 2.0**-50
