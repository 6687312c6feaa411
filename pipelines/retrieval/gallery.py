"""A gallery: vectors that are stored, grow and are searched, in a LanceDB database.

A gallery is a folder or a URI. It holds one table per encoder fingerprint and space, so that
vectors which cannot be compared never meet. Every change is one transaction and leaves a version
that can still be searched: a writer that fails, or a second one beside it, loses nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.retrieval import gallery_rows, neighbors
from pipelines.retrieval.database import ERRORS, connect, first_line, guarded
from pipelines.retrieval.gallery_rows import CHANGED, COLUMNS, Filter, Match, NoRowsError
from pipelines.retrieval.neighbors import EXACT_UP_TO, Tuning
from pipelines.retrieval.one_writer import alone, remove_repeated, remove_surplus

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

FORMAT = 1
_FACTS = b"crossreid"
_KEPT = timedelta(days=30)  # of versions, when small files are joined
_IDS_AT_ONCE = 1000
_ROWS_AT_ONCE = 10_000
log = logging.getLogger(__name__)

_UNREADABLE = (
    "the gallery cannot be read",
    "are its files there and whole? If not, `crossreid gallery add` fills a new one",
)
_reading = guarded(*_UNREADABLE)


@dataclass(frozen=True)
class Facts:
    """What the vectors of a table are.

    Attributes:
        fingerprint: of the encoder.
        space: "descriptor" or "joint".
        dim: width D of the vectors.
        checkpoint: where the encoder lay when the table was made.
        created: ISO time.
        format: of the table.
    """

    fingerprint: str
    space: str
    dim: int
    checkpoint: str
    created: str = ""
    format: int = FORMAT

    @property
    def table(self) -> str:
        """Name of the table."""
        return f"{self.space}-{self.fingerprint}"


@dataclass(frozen=True)
class Added:
    """What `Gallery.add` did: numbers of rows that are new, that replaced one, and now in all."""

    new: int
    replaced: int
    total: int


class Gallery:
    """One table of a gallery.

    Attributes:
        facts: what its vectors are.
    """

    def __init__(
        self, uri: str | Path, table: LanceTable, facts: Facts, *, historic: bool = False
    ) -> None:
        self._uri, self._table, self.facts = uri, table, facts
        self._historic = historic

    @classmethod
    def create(cls, uri: str | Path, facts: Facts, *, new_encoder: bool = False) -> Gallery:
        """The table for vectors of an encoder; made if it is not there.

        Args:
            uri: folder or URI.
            facts: of the vectors.
            new_encoder: allow a second encoder beside one of the same space.

        Raises:
            UserError: the gallery holds another encoder's vectors, or cannot be written.
        """
        database = connect(uri)
        with guarded(f"cannot write to {uri}"), alone(uri, "tables"):
            others = [one for one in _tables(database) if one.space == facts.space]
            same = [one for one in others if one.fingerprint == facts.fingerprint]
            if others and not same and not new_encoder:
                raise UserError(
                    f"{uri} holds vectors of encoder {others[-1].fingerprint}, these are of "
                    f"{facts.fingerprint}, and the two cannot be compared: choose another gallery, "
                    "or say --new-encoder to keep a second table beside the old one"
                )
            if not same:
                _make(database, facts)
        return cls.open(uri, space=facts.space, fingerprint=facts.fingerprint)

    @classmethod
    def open(
        cls,
        uri: str | Path,
        *,
        space: str | None = None,
        fingerprint: str | None = None,
        version: int | None = None,
    ) -> Gallery:
        """A table of a gallery: the only one, or the newest that fits what is named.

        Where no space is named, one of descriptors goes before one of the joint space.

        Args:
            uri: folder or URI.
            space, fingerprint: of the encoder; None for any.
            version: an older state, see `versions`.

        Raises:
            UserError: no gallery there, none of this encoder, no such version, or a gallery
                written by a newer version of the program.
        """
        if "://" not in str(uri) and not Path(uri).is_dir():
            raise UserError(f"{uri} is no gallery: make one with `crossreid gallery add`")
        database = connect(uri)
        facts = [
            one
            for one in _tables(database)
            if space in (None, one.space) and fingerprint in (None, one.fingerprint)
        ]
        if not facts:
            there = ", ".join(one.table for one in _tables(database))
            there = f"there is {there}" if there else "`crossreid gallery add` fills it"
            wanted = "-".join(part for part in (space, fingerprint) if part)
            raise UserError(f"{uri} holds no vectors {wanted}".rstrip() + f"; {there}")
        chosen = ([one for one in facts if one.space == "descriptor"] or facts)[-1]
        with guarded(f"cannot open {uri}"):
            table = database.open_table(chosen.table)
        if version is not None:
            known = [entry["version"] for entry in table.list_versions()]
            if version not in known:
                raise UserError(
                    f"{uri} has no version {version}: there are {known[0]} to {known[-1]}"
                )
            table.checkout(version)
        return cls(uri, table, chosen, historic=version is not None)

    @_reading
    def __len__(self) -> int:
        return int(self._table.count_rows())

    def add(
        self, rows: pa.Table, *, recall: float | None = None, more_follow: bool = False
    ) -> Added:
        """Store rows; equal ones are left alone, those of a known id and other content replaced.

        Another addition is waited for; at a URI, what two have inserted is there once afterwards.

        Args:
            rows: with the columns of `gallery_rows.schema`; a later row of one id wins.
            recall: at ten answers that an approximate search is tuned to, from now on; None for
                what an earlier addition said, or else 0.95.
            more_follow: leave the index to `keep_indexed`; until then they are searched exactly.

        Raises:
            UserError: vectors of another width or not finite, or the disk is full.
        """
        assert not self._historic
        rows = gallery_rows.checked(rows, self.facts.dim)
        with guarded("nothing was added"), alone(self._uri, self.facts.table) as is_alone:
            done = (
                self._table.merge_insert("id")
                .when_matched_update_all(where=CHANGED)
                .when_not_matched_insert_all()
                .execute(rows)
            )
            repeated = not is_alone or done.num_inserted_rows + done.num_updated_rows > len(rows)
            surplus = remove_surplus(self._table, rows["id"].to_pylist()) if repeated else 0
        if not more_follow:
            self.keep_indexed(recall)
        return Added(max(done.num_inserted_rows - surplus, 0), done.num_updated_rows, len(self))

    def keep_indexed(self, recall: float | None = None) -> None:
        """Take into the index what it lacks, see `add`; rows are answers without it too."""
        try:
            neighbors.keep_indexed(self._table, recall=recall)
        except ERRORS as error:
            log.warning(
                "the rows were added, but not taken into the index: %s; the next addition of "
                "rows tries again, and until then searches take longer",
                first_line(error),
            )

    def remove(self, *, ids: Sequence[str] = (), where: Filter | None = None) -> int:
        """Take rows away, by id or by what a filter leaves; returns how many.

        Raises:
            UserError: a filter that leaves everything; nothing is removed then.
        """
        parts = [tuple(ids[i : i + _IDS_AT_ONCE]) for i in range(0, len(ids), _IDS_AT_ONCE)]
        conditions = [] if where is None else [where.sql()]
        if "" in conditions:
            raise UserError("nothing was removed: say which rows")
        removed = 0
        with guarded("not everything was removed"):
            for condition in (*conditions, *(Filter(ids=part).sql() for part in parts)):
                done = self._table.delete(condition)
                removed += done.num_deleted_rows  # type: ignore[attr-defined]
        return removed

    def optimize(self, *, keep_for: timedelta = _KEPT) -> None:
        """Join small files, index all rows, the last one of every id, drop older versions."""
        with guarded("the gallery was not tidied"), alone(self._uri, self.facts.table):
            remove_repeated(self._table)
            self._table.optimize(cleanup_older_than=keep_for)
            neighbors.tune_filters(self._table)

    @_reading
    def get(self, name: str) -> Match | None:
        """The row of an id with its vector, None where there is none."""
        result = self._table.search().where(Filter(ids=(name,)).sql()).select(COLUMNS).limit(1)
        rows = gallery_rows.matches(result.to_arrow())
        return rows[0] if rows else None

    def scan(self, columns: Sequence[str], where: Filter | None = None) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, or of those that a filter leaves, some rows at a time."""
        with guarded(*_UNREADABLE):
            built = self._table.search().select([*columns])
            if where is not None and (condition := where.sql()):
                built = built.where(condition)
            yield from built.to_batches(_ROWS_AT_ONCE)

    @_reading
    def count(self, where: Filter) -> int:
        """Rows that a filter leaves."""
        return int(self._table.count_rows(where.sql() or None))

    @_reading
    def search(
        self,
        vector: np.ndarray,
        top: int,
        *,
        where: Filter | None = None,
        vectors: bool = False,
        allowed: int | None = None,
    ) -> list[Match]:
        """The nearest rows by cosine, best first; all of them where `top` is more.

        Args:
            vector: (D,) unit row.
            top: number of answers.
            where: what answers may be.
            vectors: also return the vectors.
            allowed: rows that the filter leaves, None where they are still to be counted.

        Raises:
            NoRowsError: the gallery is empty, or no row is left by the filter.
        """
        where = where or Filter()
        condition = where.sql()
        allowed = self.count(where) if allowed is None else allowed
        if not allowed and condition and len(self):
            raise NoRowsError(f"no row is {where}; this gallery has {self.described()}")
        if not allowed:
            raise NoRowsError("the gallery is empty: fill it with `crossreid gallery add`")
        columns = [name for name in COLUMNS if vectors or name != "vector"]
        result = neighbors.nearest(
            self._table,
            vector,
            min(top, allowed),
            where=condition,
            columns=[*columns, "_distance"],
            exact=allowed <= EXACT_UP_TO,
        )
        return gallery_rows.matches(result, 1 - result["_distance"].to_numpy())

    @_reading
    def described(self) -> str:
        """Modalities, cameras and times that there are, in words."""
        result = self._table.search().select(["modality"]).to_arrow()
        names = sorted(set(result["modality"].to_pylist()))
        cameras = self.cameras()
        where = f" of cameras {', '.join(map(str, cameras))}" if cameras else ""
        times = pc.min_max(self._table.search().select(["time"]).to_arrow()["time"]).as_py()
        first, last = (times[end] and f"{times[end]:%Y-%m-%d %H:%M}" for end in ("min", "max"))
        when = f" from {first} to {last}" if first else ", none with a time"
        return (" and ".join(names) + where + when) if names else "no rows"

    @_reading
    def cameras(self) -> list[int]:
        """Numbers of the cameras that are known, rising."""
        result = self._table.search().select(["camera"]).to_arrow()["camera"]
        return sorted(set(result.unique().to_pylist()) - {-1})

    @_reading
    def some_ids(self, count: int = 3) -> list[str]:
        """The first few ids."""
        return list(self._table.search().select(["id"]).limit(count).to_arrow()["id"].to_pylist())

    @_reading
    def names(self) -> dict[str, int]:
        """Who is on the watch list, and with how many images."""
        result = self._table.search().where("name != ''").select(["name"]).to_arrow()
        return {row["values"]: row["counts"] for row in result["name"].value_counts().to_pylist()}

    @_reading
    def versions(self) -> list[tuple[int, datetime]]:
        """Number and time of the states that can be searched, oldest first."""
        return [(entry["version"], entry["timestamp"]) for entry in self._table.list_versions()]

    @property
    def tuning(self) -> Tuning:
        """How an approximate search is done, and its recall."""
        return neighbors.tuning(self._table)


def tables(uri: str | Path) -> list[Facts]:
    """What a gallery holds, oldest first.

    Raises:
        UserError: it cannot be read, or was written by a newer version.
    """
    if "://" not in str(uri) and not Path(uri).is_dir():
        raise UserError(f"{uri} is no gallery: make one with `crossreid gallery add`")
    if not (result := _tables(connect(uri))):
        raise UserError(f"{uri} holds no vectors; `crossreid gallery add` fills it")
    return result


def _make(database: LanceDBConnection, facts: Facts) -> None:
    """An empty table; one that another process has made meanwhile is as good."""
    made = replace(facts, created=datetime.now(UTC).isoformat(timespec="microseconds"))
    content = gallery_rows.schema(facts.dim).with_metadata(
        {_FACTS: json.dumps(vars(made)).encode()}
    )
    try:
        database.create_table(facts.table, schema=content, exist_ok=True)
    except ERRORS:
        if all(one.table != facts.table for one in _tables(database)):
            raise


def _tables(database: LanceDBConnection) -> list[Facts]:
    names: Iterable[str] = database.list_tables().tables
    return sorted((_facts(database, name) for name in names), key=lambda one: one.created)


def _facts(database: LanceDBConnection, name: str) -> Facts:
    with guarded(f"cannot open table {name}"):
        content = (database.open_table(name).schema.metadata or {}).get(_FACTS)
    if content is None:
        raise UserError(f"table {name} of this database is none of crossreid's: choose another")
    known = json.loads(content)
    if known.get("format", 0) > FORMAT:
        raise UserError(
            f"this gallery was written by a newer version (format {known['format']}, this one "
            f"reads {FORMAT}): update crossreid; nothing was changed"
        )
    return Facts(**{key: known[key] for key in Facts.__dataclass_fields__})
