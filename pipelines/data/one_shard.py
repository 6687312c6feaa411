"""One shard of a conversion: the images that a task packs, and the names that they get."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.data.packed import Target
from pipelines.storage.files import reason
from pipelines.storage.shards import PART, parquet_row, read_bytes
from reid_core.images import decode, size_of

_ELSEWHERE = "elsewhere"
# A training batch reads single rows, and a row is read with its whole group.
_BYTES_PER_GROUP = 2**16


def write(
    part: int, images: Sequence[str], root: Path, target: Target, shape: tuple[int, int] | None
) -> list[str]:
    """Write a shard, if all of its images can be read.

    Args:
        part: its number.
        images: of the data set, by their own names.
        root: that they lie below.
        target: of the conversion.
        shape: (height, width) to resize to; None keeps the bytes.

    Returns:
        Messages about images that cannot be read, or about a place that cannot be written to.
    """
    contents, wrong = [], []
    for image in images:
        try:
            contents.append(_content(root / image, shape))
        except (OSError, ValueError) as error:
            wrong.append(f"{image}: {reason(error)}")
    if wrong:
        return wrong
    names = [name_of(image) for image in images]
    table = pa.table({"image": names, "bytes": pa.array(contents, pa.large_binary())})
    num_bytes = max(1, sum(map(len, contents)))
    try:
        target.write_table(
            PART.format(part),
            table,
            row_group_size=max(1, _BYTES_PER_GROUP * len(contents) // num_bytes),
            compression="none",  # images are compressed already
            use_dictionary=False,
            write_statistics=False,
        )
    except OSError as error:
        return [f"{PART.format(part)}: cannot write to {target.location}: {reason(error)}"]
    return []


def _content(path: Path, shape: tuple[int, int] | None) -> bytes:
    data = read_bytes(path)
    if shape is None:
        size_of(data)  # no image by its header is named here, not when it is trained on
        return data
    pixels = decode(data, height=shape[0], width=shape[1])
    encoded = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.save(encoded, format="BMP")  # six times a JPEG's size; a PNG would decode more slowly
    return encoded.getvalue()


def name_of(image: str) -> str:
    """The name of an image in the shards: its own, but of one that lies outside the root a new one.

    By its own, the original would be read.
    """
    if "://" in image or image.startswith("/") or parquet_row(image):
        return f"{_ELSEWHERE}/{hashlib.blake2b(image.encode(), digest_size=16).hexdigest()}"
    return image
