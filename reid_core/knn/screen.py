"""Candidates for the nearest rows on an accelerator: half precision, with a bound on its error.

Shapes: U rows, B query rows, D feature width, c candidates, W columns of a block, g columns of a
group.

Tensor cores multiply float16 and add in float32. What float16 rounds away is measured, row by row,
and the rest is bounded, so that the caller can prove that no row which is absent from the
candidates belongs to the nearest. The B x U products exist one block at a time, and each is read
once to find the largest of its group: a row's c best lie in the c groups with the largest maxima.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reid_core.knn.products import LONGEST

_BLOCK_BYTES = 1 << 30  # products that exist at a time
_LEAST_QUERIES = 256  # fewer would leave tensor cores idle; the columns are cut instead
_MOST_QUERIES = 4096
_SCALE = 1024.0  # a power of two, so exact; keeps small numbers above float16's smallest


@dataclass(frozen=True)
class Screened:
    """Candidates on the device.

    Attributes:
        rows: int64 (B, c), in no particular order.
        least: float32 (B,), no absent row has an approximate product above it; -inf if none is
            absent.
        error: float32 (B,), the most by which an approximate product is off.
    """

    rows: Tensor
    least: Tensor
    error: Tensor


class Screen(Protocol):
    """Proposes candidates for the nearest of some rows, and bounds what it may have missed."""

    def queries_at_a_time(self) -> int:
        """B for `largest`."""

    def largest(self, queries: Tensor, count: int) -> Screened:
        """Candidates for the `count` largest products of float32 queries (B, D)."""


class HalfScreen:
    """Float16 copies of rows, and the largest products with them."""

    def __init__(self, features: Tensor) -> None:
        """Takes (U, D) float32 unit rows on any device."""
        self._rows, residuals = _rounded(features)
        self._residual = residuals.max()

    def queries_at_a_time(self) -> int:
        """B for `largest`: as many as fit one block of products with all columns."""
        fitting = _BLOCK_BYTES // (4 * len(self._rows))
        return max(_LEAST_QUERIES, min(_MOST_QUERIES, fitting))

    def largest(self, queries: Tensor, count: int) -> Screened:
        """Candidates for the `count` largest products of float32 queries (B, D)."""
        rounded, residuals = _rounded(queries)
        error = _error_bound(residuals, self._residual, queries.shape[1])
        width = max(count, _BLOCK_BYTES // (4 * len(queries)))
        value = rounded.new_empty((len(queries), 0), dtype=torch.float32)
        row = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
        for start in range(0, len(self._rows), width):
            product = _product(rounded, self._rows[start : start + width])
            block_value, block_row = _largest(product, count)
            value = torch.cat([value, block_value], dim=1)
            row = torch.cat([row, block_row + start], dim=1)
            if value.shape[1] > count:
                value, place = value.topk(count, dim=1, sorted=False)
                row = row.gather(1, place)
        if row.shape[1] == len(self._rows):
            return Screened(row, torch.full_like(error, -math.inf), error)
        return Screened(row, value.amin(dim=1) / _SCALE**2, error)


def _rounded(features: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled float16 rows, and the length (rows,) of what was rounded away, not scaled."""
    rounded = torch.empty_like(features, dtype=torch.float16)
    residuals = torch.empty(len(features), dtype=torch.float32, device=features.device)
    step = max(1, (_BLOCK_BYTES // 4) // (4 * features.shape[1]))
    for start in range(0, len(features), step):
        part = slice(start, start + step)
        scaled = features[part] * _SCALE
        rounded[part] = scaled.half()
        residuals[part] = (scaled - rounded[part].float()).norm(dim=1) / _SCALE
    return rounded, residuals


def _error_bound(queries: Tensor, rows: Tensor, width: int) -> Tensor:
    """Most that an approximate product is off, from the lengths of what was rounded away.

    |a b - a' b'| <= |a - a'| |b| + |a'| |b - b'|. Products of float16 numbers are exact in float32.
    Tensor cores align the terms of a sum to the largest and cut them off: each of the D products
    and D additions loses at most 2^-23 of the largest partial sum, which is at most |a| |b|.
    """
    rounding = (LONGEST * queries + (LONGEST + queries) * rows) * 1.001
    return rounding + 2 * width * 2.0**-23 * (1.001 * LONGEST) ** 2


def _product(queries: Tensor, rows: Tensor) -> Tensor:
    """float32 (B, W) from float16 rows."""
    with torch.autocast(queries.device.type, enabled=False):
        if queries.device.type == "cuda":
            return torch.mm(queries, rows.T, out_dtype=torch.float32)
        # float16 numbers are exact in TF32 as well, whatever the setting says
        return queries.float() @ rows.float().T


def _largest(product: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and columns of each row's `count` largest, or of all where there are fewer."""
    num_rows, width = product.shape
    group = 1 << int(math.log2(max(1.0, (width / count) ** 0.5)))
    if group < 4:
        value, column = product.topk(min(count, width), dim=1, sorted=False)
        return value, column
    num_groups = width // group
    whole = num_groups * group
    # column j belongs to group j % num_groups: the maxima are read and written side by side
    maxima = product[:, :whole].view(num_rows, group, num_groups).amax(dim=1)
    chosen = maxima.topk(count, dim=1, sorted=False).indices
    members = torch.arange(group, device=product.device) * num_groups
    columns = (chosen[:, :, None] + members).view(num_rows, count * group)
    if whole < width:
        rest = torch.arange(whole, width, device=product.device).expand(num_rows, -1)
        columns = torch.cat([columns, rest], dim=1)
    value, place = product.gather(1, columns).topk(count, dim=1, sorted=False)
    return value, columns.gather(1, place)
