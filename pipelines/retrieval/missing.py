"""What of a source a gallery lacks, or holds with another image under the name."""

from __future__ import annotations

import hashlib
import shlex
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
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.retrieval import vectors
from pipelines.retrieval.embedder import content_hash
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import STATE, Filter, digest, state
from pipelines.retrieval.sources import Source, image_of, record_id
from pipelines.storage.shards import read_bytes
from reid_core.types import Modality, Sample

_LOOKED_AT = 4096  # images at a time: a pool keeps all that it is given
_ASKED_FOR = 1000  # names at a time: a condition of the database
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
    """Refuses images that would take the rows of other ones, of their names but below other roots.

    Where a gallery has rows of other roots it is asked for some names at a time. A sentence says
    nothing of what its image shows: it takes the row of an equal one about an image of that name
    only where the image's own row lies below the new root already.

    Args:
        gallery: that is added to.
        root: of what is added.
    """

    def __init__(self, gallery: Gallery, root: str) -> None:
        self._gallery, self._root = gallery, root
        self._is_alone = gallery.count(Filter(roots=(root,))) == len(gallery)
        self._waiting: list[tuple[str, str, str]] = []
        self._refused, self._first = 0, ("", "")

    def look(self, name: str, content: str, modality: str) -> None:
        """Take a sample in; `require_none` judges it.

        Args:
            name: its `record_id`.
            content: hash of its image, "" where unknown.
            modality: of it.
        """
        if self._is_alone or name.startswith("/") or "://" in name:
            return
        self._waiting.append((name, content, modality))
        if len(self._waiting) == _ASKED_FOR:
            self._ask()

    def require_none(self) -> None:
        """Refuse another image of a known name; the same one may lie below another root now.

        Raises:
            UserError: says both roots, how many names there are, and what to do.
        """
        self._ask()
        if not self._refused:
            return
        name, root = self._first
        many = f", one of {self._refused:,} such names," if self._refused > 1 else ""
        raise UserError(
            f"{name}{many} is known from {root}, and another one of that name, from {self._root}, "
            "would take its row: nothing was added. Fill a new gallery from a folder that holds "
            "both, or one gallery for each. Where the folder was moved, and its images changed "
            "since or have sentences, take the old rows away first: `crossreid gallery remove "
            f"GALLERY --root {shlex.quote(root)}`"
        )

    def _ask(self) -> None:
        if not self._waiting:
            return
        names = {name: image_of(name, modality) for name, _, modality in self._waiting}
        asked = tuple({*names, *names.values()})
        rows: dict[str, tuple[str, str]] = {}
        for batch in self._gallery.scan(["id", "root", "content"], Filter(ids=asked)):
            ids, *places = (column.to_pylist() for column in batch.columns)
            rows |= zip(ids, zip(*places, strict=True), strict=True)
        for name, content, modality in self._waiting:
            root, known = rows.get(name, (self._root, ""))
            same = bool(content) and content == known
            if modality == Modality.TEXT and (image := names[name]):
                same = rows.get(image, ("", ""))[0] == self._root
            if root != self._root and not same:
                self._first = self._first if self._refused else (name, root)
                self._refused += 1
        self._waiting = []


def missing(source: Source, gallery: Gallery) -> Chosen:
    """What is not known with its present image and what is said of it.

    Raises:
        UserError: a name that the gallery knows of another root's image; what a source refuses.
    """
    root, known = str(source.root), _states(gallery)
    elsewhere = Elsewhere(gallery, root)

    def changed(sample: Sample) -> tuple[str, str, str] | None:
        """Its name, its content where a row of that name has to be of the same, its modality."""
        name = record_id(sample)
        if name not in known:
            return name, "", sample.modality
        try:
            data = sample.caption.encode() or read_bytes(source.root / sample.image)
        except OSError:
            return name, "", sample.modality  # embed names what cannot be read
        content = content_hash(data)
        now = state(sample, content=content, root=root)
        return None if now == known[name] else (name, content, sample.modality)

    keys, count = array("Q"), 0
    for count, new in enumerate(in_threads(changed, source.samples()), start=1):  # noqa: B007
        if new is not None:
            keys.append(key_of(new[0]))
            if new[1]:
                elsewhere.look(*new)
    elsewhere.require_none()
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
