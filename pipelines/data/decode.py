"""Decoding and augmenting the lines of a block, in whatever process Ray Data chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    return read_with_content(path, height=height, width=width, max_megapixels=max_megapixels)[0]


def read_with_content(
    path: Path, *, height: int, width: int, max_megapixels: float
) -> tuple[np.ndarray, bytes]:
    """What `read_image` gives, and the bytes of the file.

    Raises:
        ValueError: see `read_image`.
    """
    try:
        data = read_bytes(path)
        return decode(data, height=height, width=width, max_megapixels=max_megapixels), data
    except (OSError, ValueError) as error:
        raise ValueError(f"{location(path)}: {reason(error)}") from error


def located(root: Path, paths: Iterable[str]) -> list[str]:
    """Where files lie, as they are named wherever decoded images are kept; "" stays as it is."""
    folder = str(root)
    return [os.path.join(folder, path) if path else "" for path in paths]


def read_into(
    out: np.ndarray,
    paths: Sequence[str],
    decode: Callable[[int], np.ndarray | None],
    decoded: Decoded | None,
) -> None:
    """Fill in images of different paths, as `Decoded.read_into`; decode all where none are kept."""
    if decoded is not None:
        decoded.read_into(out, paths, decode)
        return
    for number in range(len(paths)):
        image = decode(number)
        if image is not None:
            out[number] = image


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
        paths = block["path"].tolist()
        files, decoded = self._read(list(dict.fromkeys(paths)))
        block = {name: np.array(column) for name, column in block.items()}  # may be read-only
        block["planned"] = np.full(len(paths), OUTLIER)
        sources = np.array([files.get(path, -1) for path in paths], dtype=np.int64)
        missing = np.flatnonzero(sources < 0)
        if len(missing):
            more = [self._replacement(block, line) for line in missing.tolist()]
            sources[missing] = len(decoded) + np.arange(len(missing))
            decoded = np.concatenate([decoded, np.stack(more)])
        images = np.empty((len(paths), 3, *self._size), dtype=np.uint8)
        for name, views in self._transforms.items():
            for view, transform in enumerate(views):
                (own,) = np.nonzero((block["modality"] == str(name)) & (block["view"] == view))
                transform.into(images, own, decoded, sources[own], block["seed"][own])
        return {name: block[name] for name in _KEPT if name in block} | {"image": images}

    def _replacement(self, block: dict[str, np.ndarray], line: int) -> np.ndarray:
        """A line's first readable replacement, which it is from now on; else a black image."""
        block["planned"][line] = block["row"][line]
        for number in range(1, 1 + NUM_REPLACEMENTS):
            path: str = block[f"path{number}"][line]
            files, decoded = self._read([path] if path else [])
            if files:
                for name in block.keys() & {"row", "caption"}:
                    block[name][line] = block[f"{name}{number}"][line]
                image: np.ndarray = decoded[0]
                return image
        return np.zeros((3, *self._size), dtype=np.uint8)

    def _read(self, paths: list[str]) -> tuple[dict[str, int], np.ndarray]:
        """Images (n, 3, H, W) of different paths, and the rows of those that can be read."""
        height, width = self._size
        images = np.empty((len(paths), 3, height, width), dtype=np.uint8)
        broken = set()

        def decode(number: int) -> np.ndarray | None:
            try:
                return read_image(
                    Path(paths[number]),
                    height=height,
                    width=width,
                    max_megapixels=self._max_megapixels,
                )
            except ValueError:
                broken.add(number)
                return None

        read_into(images, paths, decode, self._decoded)
        return {path: row for row, path in enumerate(paths) if row not in broken}, images
