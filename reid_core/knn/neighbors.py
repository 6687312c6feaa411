"""What a neighbor search is asked and answers, and the order of its answers.

Shapes: N rows, D feature width, k neighbors, c candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reid_core.compiled import compiled
from reid_core.knn.products import Features

QUERY_BLOCK = 1024  # rows of one block of a search
EXTRA_CANDIDATES = 8  # above k: room for the proof that no absent row is nearer
NO_ROW = -1


@dataclass(frozen=True)
class Neighbors:
    """Nearest rows of each row.

    Attributes:
        rows: (N, k) int32; the row itself first, then by (distance, row).
        similarity: (N, k) float32 cosines.
    """

    rows: np.ndarray
    similarity: np.ndarray


class Search(Protocol):
    """Finds the nearest rows of each row, in this process or on many machines."""

    def __call__(
        self, features: Features, k: int, /, *, is_second: np.ndarray | None = None
    ) -> Neighbors:
        """The k nearest of all rows; with `is_second` half of them from either modality.

        Args:
            features: (N, D) unit rows.
            k: neighbors per row, the row itself included; even with `is_second`.
            is_second: (N,) bool, which rows belong to the second modality. Columns 0 to k / 2 - 1
                are then the nearest rows of the first modality, the others those of the second,
                each half ordered on its own, the row itself first in its own modality's half.
        """


class BlockSearch(Protocol):
    """A search cut into blocks that can run anywhere: every machine that opens it has the same."""

    @property
    def num_blocks(self) -> int:
        """Block numbers are 0 ... num_blocks - 1."""

    def run(self, block: int) -> Neighbors:
        """One block's part of the answer, for `join`."""

    def join(self, blocks: Sequence[Neighbors]) -> Neighbors:
        """The neighbors of all rows, from the results of all blocks in order."""

    def run_here(self) -> Neighbors:
        """The neighbors of all rows, in this process."""


@compiled()
def order_candidates(candidates: np.ndarray, exact: np.ndarray, own: np.ndarray) -> None:
    """Sorts each row's candidates in place: its own number, then (similarity falling, row).

    Args:
        candidates: (N, c) int32, each once in a row.
        exact: (N, c) their similarities.
        own: (N,) number of each row; one that is no candidate where there is none.
    """
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
