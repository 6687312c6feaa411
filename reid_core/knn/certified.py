"""The nearest rows, proven: candidates are accepted where no absent row can belong to the best.

Shapes: U rows, B query rows, D feature width, k neighbors, c candidates.

A screen gives candidates and a bound: no absent row's product exceeds `least` by more than `error`.
Where the k-th exact product of the candidates is larger than that, they hold the k nearest. Where
it is not, the row is searched again in float64, whose bound is a billionth, and where even that
leaves a tie at the k-th place, all rows are multiplied exactly. So the answer is one and the same
on every device: own row first, then (exact product, row).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reid_core.knn import products
from reid_core.knn.fixed_point import exact_products, products_on_device
from reid_core.knn.neighbors import EXTRA_CANDIDATES, NO_ROW, Neighbors, order_candidates
from reid_core.knn.products import LONGEST, Candidates, Features
from reid_core.knn.screen import Screen

_DOUBLE_BYTES = 1 << 28  # of float64 products at a time


def single_error(width: int) -> float:
    """Most that a float32 product of two unit rows is off, whatever the order of its sum."""
    return width * 2.0**-24 * LONGEST**2 * 1.01


def best_on_host(
    candidates: Candidates, own: np.ndarray | None, queries: Features, features: Features, k: int
) -> Neighbors:
    """The k nearest rows of each query from candidates of float32 products.

    Args:
        candidates: of each query; not kept.
        own: (B,) number of each query among the rows; None where it is none of them.
        queries, features: (B, D), (U, D).
        k: neighbors, at most U.

    Returns:
        Rows (B, k), the own one first, and their exact products as float64.
    """
    rows, first = candidates.rows, _own_or_none(own, len(queries))
    missing = np.zeros(len(rows), dtype=bool)
    if own is not None:
        missing = ~(rows == own[:, None]).any(axis=1)
        rows[missing, -1] = own[missing]
    exact = exact_products(queries, features, rows)
    order_candidates(rows, exact, first)
    bound = candidates.least + single_error(features.shape[1])
    certain = ~missing & (exact[:, k - 1] > bound) | np.isneginf(candidates.least)
    if own is not None and k == 1:
        certain[:] = True
    rows, exact = rows[:, :k], exact[:, :k]
    again = np.flatnonzero(~certain)
    if len(again):
        asked = torch.as_tensor(products.take(queries, again))
        numbers = None if own is None else torch.from_numpy(own[again].astype(np.int64))
        sure_rows, sure = in_double(asked, torch.as_tensor(features), k, numbers)
        rows[again], exact[again] = sure_rows.numpy(), sure.numpy()
    return Neighbors(rows, exact)


def candidates_on_device(k: int, num_rows: int) -> int:
    """How many rows a screen is asked for: enough that few rows are searched again."""
    return min(-(-(2 * k + 4) // 32) * 32, num_rows)


def best_on_device(
    screen: Screen, own: Tensor | None, queries: Tensor, features: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of each query, found on the device and left there.

    Args:
        screen: of the features.
        own: int64 (B,), as in `best_on_host`.
        queries, features: (B, D), (U, D), float32.
        k: neighbors, at most U.

    Returns:
        int64 rows and float64 products (B, k).
    """
    count = candidates_on_device(k, len(features))
    screened = screen.largest(queries, count)
    rows, exact = _ordered(screened.rows, own, queries, features, k)
    bound = (screened.least + screened.error).double()
    certain = (exact[:, k - 1] > bound) | torch.isneginf(bound)
    if own is not None and k == 1:
        return rows, exact
    again = torch.nonzero(~certain).flatten()
    if len(again):
        numbers = None if own is None else own[again]
        rows[again], exact[again] = in_double(queries[again], features, k, numbers)
    return rows, exact


def in_double(
    queries: Tensor, features: Tensor, k: int, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`best_on_device` by float64 products of all rows, for the few queries that need it."""
    count, num_rows = min(k + EXTRA_CANDIDATES, len(features)), len(features)
    # rounding of D products and sums, and of the exact products' own last place
    error = 2 * features.shape[1] * 2.0**-51
    step = max(1, _DOUBLE_BYTES // (8 * num_rows))
    parts = []
    for start in range(0, len(queries), step):
        asked = queries[start : start + step]
        numbers = None if own is None else own[start : start + step]
        value, row = _double_products(asked, features).topk(count, dim=1, sorted=False)
        rows, exact = _ordered(row, numbers, asked, features, k)
        if count < num_rows:
            certain = exact[:, k - 1] > value.amin(dim=1) + error
            for place in torch.nonzero(~certain).flatten().tolist():
                one = slice(place, place + 1)
                rows[one], exact[one] = _among_all(
                    asked[one], features, k, None if numbers is None else numbers[one]
                )
        parts.append((rows, exact))
    return torch.cat([rows for rows, _ in parts]), torch.cat([exact for _, exact in parts])


def _double_products(queries: Tensor, features: Tensor) -> Tensor:
    out = torch.empty((len(queries), len(features)), dtype=torch.float64, device=features.device)
    step = max(1, _DOUBLE_BYTES // (8 * features.shape[1]))
    double = queries.double()
    with torch.autocast(features.device.type, enabled=False):
        for start in range(0, len(features), step):
            out[:, start : start + step] = double @ features[start : start + step].double().T
    return out


def _among_all(
    query: Tensor, features: Tensor, k: int, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows and products (1, k) of one query, every row multiplied exactly."""
    every = torch.arange(len(features), device=features.device)
    step = 1 << 16
    exact = torch.cat(
        [products_on_device(query, features, part[None]) for part in every.split(step)], dim=1
    )
    return _sorted(every[None], exact, own, k)


def _ordered(
    rows: Tensor, own: Tensor | None, queries: Tensor, features: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of the candidates, the own row among them whether or not it was one."""
    if own is not None:
        # a candidate that is the own row stands twice now, and its second place goes last
        rows = torch.cat([rows.masked_fill(rows == own[:, None], NO_ROW), own[:, None]], dim=1)
    exact = products_on_device(queries, features, rows.clamp_min(0))
    exact = exact.masked_fill(rows == NO_ROW, -torch.inf)
    return _sorted(rows, exact, own, k)


def _sorted(rows: Tensor, exact: Tensor, own: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """By own row first, then falling product, then row."""
    rows, order = torch.sort(rows, dim=1)
    exact = exact.gather(1, order)
    rank = exact if own is None else exact.masked_fill(rows == own[:, None], torch.inf)
    order = torch.sort(rank, dim=1, descending=True, stable=True).indices[:, :k]
    return rows.gather(1, order), exact.gather(1, order)


def _own_or_none(own: np.ndarray | None, num: int) -> np.ndarray:
    return np.full(num, NO_ROW) if own is None else own
