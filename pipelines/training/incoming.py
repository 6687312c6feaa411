"""Features on their way to the memory bank: each row is held once, from its arrival on.

Shapes: n rows of a modality, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pipelines.distributed.collectives import shares
from reid_core.knn.products import Features
from reid_core.types import Modality


class Incoming:
    """One epoch's features in one block of memory, modality after modality.

    Workers hand in their shares whole or in pieces, and every piece is copied to its place, so no
    share is kept beside the block. Both modalities together are the block itself
    (`reid_core.knn.products.stacked`).

    Args:
        sizes: n per modality, in the order of the method.
        device: where the block is to be.
    """

    def __init__(self, sizes: Mapping[Modality, int], device: torch.device) -> None:
        self._sizes, self._device = dict(sizes), device
        self._block: Tensor | None = None
        # per modality and rank, the rows of each piece by its place
        self._arrived: dict[Modality, dict[int, dict[int, int]]] = {m: {} for m in sizes}

    def make_room(self, features: Features) -> None:
        """The block, for rows as wide as these; not by two threads at once."""
        if self._block is None:
            dtype = features.dtype
            if not isinstance(dtype, torch.dtype):
                dtype = torch.from_numpy(np.empty(0, dtype)).dtype
            shape = sum(self._sizes.values()), features.shape[1]
            self._block = torch.empty(shape, dtype=dtype, device=self._device)

    def place(
        self, modality: Modality, features: Features, rank: int, world: int, start: int
    ) -> None:
        """Copy a piece to its place.

        Args:
            modality: of the rows.
            features: (any, D) consecutive rows of a share.
            rank, world: whose share of how many.
            start: place of the first of these rows within the share.
        """
        first = shares(self._sizes[modality], world)[rank].start + start
        target = self.rows(modality)[first : first + len(features)]
        if isinstance(features, Tensor):
            target.copy_(features)
        elif target.device.type == "cpu":
            target.numpy()[:] = features
        else:
            target.copy_(torch.tensor(features))  # Ray's arrays are read-only, torch warns of them

    def has(self, modality: Modality, rank: int, start: int) -> bool:
        """Whether a piece is there already: one that is sent again changes nothing."""
        return start in self._arrived[modality].get(rank, {})

    def count(self, modality: Modality, num_rows: int, rank: int, world: int, start: int) -> bool:
        """Note that a piece is in its place; whether it was the last one of the modality."""
        if self.has(modality, rank, start):
            return False
        arrived = self._arrived[modality]
        arrived.setdefault(rank, {})[start] = num_rows
        num_arrived = sum(sum(pieces.values()) for pieces in arrived.values())
        return len(arrived) == world and num_arrived == self._sizes[modality]

    def everywhere(self, world: int) -> set[int]:
        """Ranks that handed in their whole share of every modality."""
        whole = set(range(world))
        for m, arrived in self._arrived.items():
            parts = shares(self._sizes[m], world)
            sizes = [part.stop - part.start for part in parts]
            whole &= {r for r, pieces in arrived.items() if sum(pieces.values()) == sizes[r]}
        return whole

    def rows(self, modality: Modality) -> Tensor:
        """A modality's rows (n, D), a view of the block."""
        assert self._block is not None
        first = 0
        for m, size in self._sizes.items():
            if m == modality:
                return self._block[first : first + size]
            first += size
        raise KeyError(modality)

    def release(self) -> None:
        """Give the memory back."""
        self._block = None
