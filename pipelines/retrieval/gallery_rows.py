"""The rows of a gallery: their columns, a filter over them, and what a search returns of one."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from reid_core.types import Modality, Sample


def schema(dim: int) -> pa.Schema:
    """Columns of a table of vectors of `dim` numbers.

    id is unique. content is a hash of the image file, "" where unknown. camera, pid and tracklet
    are -1 and time is null where unknown. images counts what a tracklet's vector is the mean of.
    name is that of an identity on the watch list, else "". An image lies at root / image.
    """
    return pa.schema(
        [
            ("id", pa.string()),
            ("content", pa.string()),
            ("modality", pa.string()),
            ("camera", pa.int32()),
            ("pid", pa.int64()),
            ("tracklet", pa.int64()),
            ("images", pa.int32()),
            ("time", pa.timestamp("us", tz="UTC")),
            ("name", pa.string()),
            ("root", pa.string()),
            ("image", pa.string()),
            ("vector", pa.list_(pa.float32(), dim)),
        ]
    )


COLUMNS = schema(1).names
MAX_CAMERA = 2**31 - 1  # that its column holds
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STATE = ("content", "modality", "camera", "pid", "tracklet", "root", "image", "time")
# A row is replaced where its image, or what is known about it, is another.
CHANGED = " OR ".join(f"target.{name} != source.{name}" for name in (*STATE[:-1], "images", "name"))
CHANGED += (
    " OR target.time != source.time OR (target.time IS NULL AND source.time IS NOT NULL)"
    " OR (target.time IS NOT NULL AND source.time IS NULL)"
)


def checked(rows: pa.Table, dim: int) -> pa.Table:
    """The rows in the schema's order, the last of each id, with vectors that can be compared.

    Raises:
        UserError: vectors of another width, or not of length 1.
    """
    width = rows.schema.field("vector").type.list_size
    if width != dim:
        raise UserError(f"these vectors have {width} numbers, the gallery's have {dim}")
    flat = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
    lengths = np.linalg.norm(flat.astype(np.float32), axis=1)
    wrong = ~(np.abs(lengths - 1) < 0.01)
    if wrong.any():
        name = rows["id"][int(np.argmax(wrong))].as_py()
        raise UserError(f"the vector of {name} has length {lengths[wrong][0]:.3g} instead of 1")
    last = {name: number for number, name in enumerate(rows["id"].to_pylist())}
    if len(last) < len(rows):
        rows = rows.take(sorted(last.values()))
    return rows.select(schema(dim).names).cast(schema(dim))


def state(sample: Sample, *, content: str, root: str) -> int:
    """What a row is made of: another state is another row."""
    time = None if sample.time is None else micros(sample.time)
    seen = str(sample.modality), sample.camera, sample.pid, sample.tracklet
    return digest(content, *seen, root, sample.image, time)


def digest(*values: str | int | None) -> int:
    """64 bits of the values of `STATE`, time in microseconds: a gallery has many rows."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest())


class NoRowsError(UserError):
    """A gallery has no row that a filter leaves."""


@dataclass(frozen=True)
class Filter:
    """What answers may be; the database applies it before it searches.

    Attributes:
        modality: of the answers, None for any.
        cameras: of the answers, none for any.
        since, until: first and last time of the answers; rows without a time are left out then.
        enrolled: only identities of the watch list (True), only others (False), or both (None).
        ids, pids, names, roots: of the answers, none for any.

    Raises:
        UserError: an empty name, which is what rows outside the watch list have, or a camera whose
            number no row can have.
    """

    modality: Modality | None = None
    cameras: tuple[int, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    enrolled: bool | None = None
    ids: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(name.strip() for name in self.names):
            raise UserError("a name is empty: say who of the watch list is meant")
        if max(self.cameras, default=0) > MAX_CAMERA:
            raise UserError(f"camera {max(self.cameras)}: numbers end at {MAX_CAMERA}")

    def sql(self) -> str:
        """As a condition of the database, "" where everything may be an answer."""
        terms = []
        if self.modality is not None:
            terms.append(f"modality = {_quoted(self.modality)}")
        for column, numbers in (("camera", self.cameras), ("pid", self.pids)):
            if numbers:
                terms.append(f"{column} IN ({', '.join(str(int(n)) for n in numbers)})")
        if self.since is not None:
            terms.append(f"time >= to_timestamp_micros({micros(self.since)})")
        if self.until is not None:
            terms.append(f"time <= to_timestamp_micros({micros(self.until)})")
        if self.enrolled is not None:
            terms.append("name != ''" if self.enrolled else "name = ''")
        for column, texts in (("id", self.ids), ("name", self.names), ("root", self.roots)):
            if texts:
                terms.append(f"{column} IN ({', '.join(map(_quoted, texts))})")
        return " AND ".join(terms)

    def __str__(self) -> str:
        terms = [] if self.modality is None else [str(self.modality)]
        if self.cameras:
            terms.append(f"of camera {', '.join(map(str, self.cameras))}")
        if self.since is not None:
            terms.append(f"since {self.since:%Y-%m-%d %H:%M}")
        if self.until is not None:
            terms.append(f"until {self.until:%Y-%m-%d %H:%M}")
        if self.enrolled is not None:
            terms.append("on the watch list" if self.enrolled else "not on the watch list")
        if self.ids:
            terms.append(f"one of {len(self.ids)} ids")
        if self.pids:
            terms.append(f"identity {', '.join(map(str, self.pids))}")
        if self.names:
            terms.append(f"called {', '.join(self.names)}")
        if self.roots:
            terms.append(f"added from {self.roots[0]}")
        return " and ".join(terms)


@dataclass(frozen=True)
class Match:
    """A row of a gallery.

    Attributes:
        id: its name.
        similarity: cosine to the query; 1 for a row that was asked for by its id.
        modality: that it was seen with.
        camera, pid, tracklet: -1 where unknown.
        images: that the vector is the mean of.
        time: when it was seen, None where unknown.
        name: of an identity on the watch list, else "".
        root, image: where the image lies.
        vector: (D,) float32, None where it was not asked for.
    """

    id: str
    similarity: float
    modality: str
    camera: int
    pid: int
    tracklet: int
    images: int
    time: datetime | None
    name: str
    root: str
    image: str
    vector: np.ndarray | None = None

    @property
    def file(self) -> Path | None:
        """The image file; None for a name that leads out of its folder, which nobody is shown."""
        inner = PurePosixPath(self.image)
        return None if ".." in inner.parts else Path(self.root) / inner


def matches(rows: pa.Table, similarity: Sequence[float] | np.ndarray | None = None) -> list[Match]:
    """Rows of a table as `Match`, in their order."""
    remaining = [name for name in COLUMNS if name in rows.column_names and name != "content"]
    columns = {name: rows[name].to_pylist() for name in remaining if name != "vector"}
    if "vector" in remaining:
        dim = rows.schema.field("vector").type.list_size
        flat = rows["vector"].combine_chunks().flatten().to_numpy()
        columns["vector"] = list(flat.reshape(-1, dim))
    values = np.ones(len(rows)) if similarity is None else np.asarray(similarity)
    return [
        Match(similarity=float(value), **{name: columns[name][i] for name in columns})
        for i, value in enumerate(values)
    ]


def time_of(text: str | None, option: str) -> datetime | None:
    """A time as users write it, UTC where it says no zone; None for None.

    Raises:
        UserError: it is no ISO time, or empty.
    """
    if text is None:
        return None
    try:
        known = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{option} {text or 'is empty'}: write a time as 2026-11-27T14:05"
        ) from None
    return known if known.tzinfo else known.replace(tzinfo=UTC)


def spellings(name: str, stored: Iterable[str]) -> list[str]:
    """How a name stands among some, first with composed accents, which it is alone if it is new.

    Older versions stored names as they were typed, and macOS takes accents apart.
    """
    composed = unicodedata.normalize("NFC", name)
    known = [one for one in stored if unicodedata.normalize("NFC", one) == composed]
    return sorted(known, key=lambda one: one != composed) or [composed]


def _quoted(text: str) -> str:
    return "'" + str(text).replace("'", "''") + "'"


def micros(time: datetime) -> int:
    """Since 1970, as the database compares times."""
    return (time - _EPOCH) // timedelta(microseconds=1)
