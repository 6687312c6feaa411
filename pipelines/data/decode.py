"""Decoding and augmenting the lines of a block, in whatever process Ray Data chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipelines.data.decoded import Decoded
from pipelines.data.replacements import NUM_REPLACEMENTS
from pipelines.storage.files import reason
from pipelines.storage.shards import location, read_bytes
from reid_core.images import decode
from reid_core.transforms import TrainTransform
from reid_core.types import MAX_MEGAPIXELS, OUTLIER, Modality

Transforms = Mapping[Modality, Sequence[TrainTransform]]
# What the workers receive of a line, beside its image.
_KEPT = ("row", "label", "batch", "rank", "position", "planned", "caption")


def read_image(
    path: Path, *, height: int, width: int, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """One decoded image (3, H, W) uint8; see `reid_core.images.decode`.

    Raises:
        ValueError: cannot be read or decoded; names the file.
    """
    try:
        data = read_bytes(path)
        return decode(data, height=height, width=width, max_megapixels=max_megapixels)
    except (OSError, ValueError) as error:
        raise ValueError(f"{location(path)}: {reason(error)}") from error


class DecodeAndAugment:
    """Adds the augmented image (3, H, W) uint8 to every line of a block.

    An image that cannot be read is replaced by its first replacement that can. Column "planned" is
    the row that was planned there, -1 where that one was read; the row (and caption) are those of
    the image that was. Where no replacement can be read either, the image is black and the row is
    the planned one: see `pipelines.data.corrupt_images.CorruptImages`.

    Args:
        height, width: size in pixels that images are decoded to.
        transforms: per modality, one for each view.
        max_megapixels: larger images are refused by their header.
        decoded: where images are kept once they are decoded; None for nowhere.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        transforms: Transforms,
        max_megapixels: float = MAX_MEGAPIXELS,
        decoded: Decoded | None = None,
    ) -> None:
        self._size = (height, width)
        self._max_megapixels = max_megapixels
        self._transforms, self._decoded = transforms, decoded

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Lines with paths -> lines with images."""
        files = {"": np.zeros((3, *self._size), dtype=np.uint8)}
        paths = block["path"].tolist()
        for path in paths:
            self._read(path, files)
        block = {name: np.array(column) for name, column in block.items()}  # may be read-only
        block["planned"] = np.full(len(paths), OUTLIER)
        for line, path in enumerate(paths):
            if path not in files:
                paths[line] = self._replace(block, line, files)
        images = np.empty((len(paths), 3, *self._size), dtype=np.uint8)
        for name, views in self._transforms.items():
            for view, transform in enumerate(views):
                (own,) = np.nonzero((block["modality"] == str(name)) & (block["view"] == view))
                decoded = [files[paths[i]] for i in own]
                transform.into([images[i] for i in own], decoded, block["seed"][own])
        return {name: block[name] for name in _KEPT if name in block} | {"image": images}

    def _replace(
        self, block: dict[str, np.ndarray], line: int, files: dict[str, np.ndarray]
    ) -> str:
        """Fill a line with its first readable replacement; returns that one's path, or ""."""
        block["planned"][line] = block["row"][line]
        for number in range(1, 1 + NUM_REPLACEMENTS):
            path: str = block[f"path{number}"][line]
            self._read(path, files)
            if path and path in files:
                for name in block.keys() & {"row", "caption"}:
                    block[name][line] = block[f"{name}{number}"][line]
                return path
        return ""

    def _read(self, path: str, files: dict[str, np.ndarray]) -> None:
        """Add a file to the decoded ones, unless it is there or cannot be read."""
        if path in files:
            return
        with suppress(ValueError):
            files[path] = self._image(path)

    def _image(self, path: str) -> np.ndarray:
        def decode() -> np.ndarray:
            height, width = self._size
            return read_image(
                Path(path), height=height, width=width, max_megapixels=self._max_megapixels
            )

        return decode() if self._decoded is None else self._decoded.read(path, decode)
