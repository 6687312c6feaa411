"""What of a source a gallery lacks, or holds with another image under the name."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.retrieval import vectors
from pipelines.retrieval.embedder import content_hash
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import STATE, digest, state
from pipelines.retrieval.sources import Source, record_id
from pipelines.storage.shards import read_bytes
from reid_core.types import Modality, Sample

_LOOKED_AT = 4096  # images at a time: a pool keeps all that it is given
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Chosen(Source):
    """The samples of a source whose ids are among some.

    Attributes:
        keys: (n,) uint64, rising: `key_of` of the ids, as the ids of millions would be too much to
            send to a task. Of those of one key all are taken: an image too many is no fault.
        num_listed: samples of the source.
    """

    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)
    num_listed: int = 0

    def samples(self) -> Iterator[Sample]:
        """In the source's order."""
        return (sample for sample in super().samples() if self._has(key_of(record_id(sample))))

    def _has(self, key: int) -> bool:
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        return place < len(self.keys) and int(self.keys[place]) == key


class Elsewhere:
    """The rows of a gallery whose images lie below other roots than that of what is added.

    Args:
        gallery: is read once.
        root: of what is added.
    """

    def __init__(self, gallery: Gallery, root: str) -> None:
        self._gallery, self._root = gallery, root
        self._rows: dict[str, tuple[str, str]] = {}
        for batch in gallery.scan(["id", "root", "content"]):
            others = batch.filter(pc.not_equal(batch["root"], root))
            ids, roots, contents = (column.to_pylist() for column in others.columns)
            places = zip(map(sys.intern, roots), contents, strict=True)
            self._rows |= zip(ids, places, strict=True)

    def __len__(self) -> int:
        return len(self._rows)

    def require_same(self, name: str, content: str) -> None:
        """Refuse another image of a known name; the same one may lie below another root now.

        Args:
            name: `record_id` of a sample.
            content: hash of its image, "" where unknown.

        Raises:
            UserError: says both roots and what to do.
        """
        if name not in self._rows or name.startswith("/") or "://" in name:
            return
        root, known = self._rows[name]
        if content and content == known:
            return
        raise UserError(
            f"{name} is known from {root}, and another one of that name, from {self._root}, would "
            "take its row: nothing was added. Fill a new gallery from a folder that holds both, or "
            "one gallery for each. Where the folder was moved, and the image changed since, take "
            "the old row away first (`crossreid gallery remove`)"
        )


def missing(source: Source, gallery: Gallery) -> Chosen:
    """What is not known with its present image and what is said of it.

    Raises:
        UserError: a name that the gallery knows of another root's image; what a source refuses.
    """
    root, known = str(source.root), _states(gallery)
    elsewhere = Elsewhere(gallery, root)

    def changed(sample: Sample) -> int | None:
        name = record_id(sample)
        if name not in known:
            return key_of(name)
        try:
            data = sample.caption.encode() or read_bytes(source.root / sample.image)
        except OSError:
            return key_of(name)  # embed names what cannot be read
        content = content_hash(data)
        elsewhere.require_same(name, content)
        now = state(sample, content=content, root=root)
        return None if now == known[name] else key_of(name)

    keys, count = array("Q"), 0
    for count, key in enumerate(in_threads(changed, source.samples()), start=1):  # noqa: B007
        if key is not None:
            keys.append(key)
    own = {f.name: getattr(source, f.name) for f in fields(Source)}
    return Chosen(**own, keys=np.unique(np.array(keys, np.uint64)), num_listed=count)


def remove_outdated(folder: Path, root: Path) -> None:
    """Remove the parts of an interrupted addition in which an image is another one now.

    Args:
        folder: of the parts.
        root: folder that the images are relative to.
    """
    for path in vectors.part_files(folder):
        try:
            rows = pq.read_table(path, columns=["id", "modality", "content"]).to_pylist()
        except (OSError, pa.ArrowException):  # a damaged part is embedded again
            continue
        if not all(in_threads(partial(_is_current, root), rows)):
            path.unlink()


def _is_current(root: Path, row: dict[str, Any]) -> bool:
    if row["modality"] == Modality.TEXT:  # its id says which words
        return True
    try:
        content = content_hash(read_bytes(root / row["id"]))
    except OSError:
        return False
    return bool(content == row["content"])


def _states(gallery: Gallery) -> dict[str, int]:
    """What a row of every id was made of, as `gallery_rows.state` puts it."""
    result: dict[str, int] = {}
    for batch in gallery.scan(["id", *STATE]):
        batch = batch.set_column(len(STATE), STATE[-1], batch[STATE[-1]].cast(pa.int64()))
        columns = (batch[name].to_pylist() for name in STATE)
        result |= zip(batch["id"].to_pylist(), map(digest, *columns), strict=True)
    return result


def in_threads(look: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """What is found of each item, in order; some of them are under way at a time."""
    left = iter(items)
    with ThreadPoolExecutor(8) as pool:
        while some := list(islice(left, _LOOKED_AT)):
            yield from pool.map(look, some)


def key_of(name: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
