"""Where the rows of a split lie, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data.decode import located, read_image, read_into
from pipelines.data.decoded import Decoded
from reid_core.types import MAX_MEGAPIXELS, Modality, Split


@dataclass(frozen=True)
class Inputs:
    """Where the rows of a split lie.

    Attributes:
        root: folder of the data set, or its URI.
        paths: per image modality, (n,) paths relative to it, in row order.
        height, width: size in pixels that images are decoded to.
        max_megapixels: larger images are refused by their header.
        tokens: (n captions, 77) int64 token ids, or None.
        owners: (n captions,) int64 visible row that each caption describes, or None.
        decoded: where images are kept once they are decoded; None for nowhere.
    """

    root: Path
    paths: dict[Modality, np.ndarray]
    height: int
    width: int
    tokens: np.ndarray | None = None
    owners: np.ndarray | None = None
    max_megapixels: float = MAX_MEGAPIXELS
    decoded: Decoded | None = None

    def num_rows(self, modality: Modality) -> int:
        """Images, or captions, of a modality."""
        if modality == Modality.TEXT:
            return 0 if self.tokens is None else len(self.tokens)
        return len(self.paths[modality])

    def read(self, modality: Modality, rows: np.ndarray) -> np.ndarray:
        """Decoded images (B, 3, H, W) uint8, or token ids (B, 77), of the given rows."""
        if modality == Modality.TEXT:
            assert self.tokens is not None
            tokens: np.ndarray = self.tokens[rows]
            return tokens
        images = np.empty((len(rows), 3, self.height, self.width), dtype=np.uint8)
        paths = located(self.root, self.paths[modality][rows])

        def decode(number: int) -> np.ndarray:
            size = {"height": self.height, "width": self.width}
            return read_image(Path(paths[number]), **size, max_megapixels=self.max_megapixels)

        read_into(images, paths, decode, self.decoded)
        return images


@dataclass(frozen=True)
class Measured:
    """A split with pids, and where its rows lie."""

    split: Split
    inputs: Inputs
