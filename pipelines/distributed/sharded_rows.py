"""Rows of which every worker holds its share, read as if each held all of them.

Shapes: n rows in all, E width, B rows that are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.distributed import collectives


class ShardedRows:
    """Frozen features (n, E), a contiguous share of them on each worker.

    Args:
        share: this worker's rows, those of `collectives.slice_of(n)`.
        num_rows: n.
    """

    def __init__(self, share: Tensor, num_rows: int) -> None:
        own = collectives.slice_of(num_rows)
        self._first, self._stop = own.start, own.stop
        # of an empty share no row is ever taken, but one is read
        self._share = share if len(share) else share.new_zeros(1, share.shape[1])
        self.shape = num_rows, share.shape[1]

    @property
    def device(self) -> torch.device:
        """Of the rows."""
        return self._share.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self._share.dtype

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The given rows (B, E), to the bit; every worker asks for the same ones at once.

        Each worker gives those that it holds and zeros for the others, and the sum is the rows.
        """
        if collectives.world_size() == 1:
            return self._share[rows]
        place = (rows - self._first).clamp(0, len(self._share) - 1)
        is_own = (rows >= self._first) & (rows < self._stop)
        return collectives.sum_over_workers(self._share[place] * is_own[:, None])
