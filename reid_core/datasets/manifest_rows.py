"""The rows of a manifest, read alike for training, embedding, conversion and check."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reid_core.datasets.cell_values import (
    WHOLE,
    is_name,
    moment,
    slashed,
    text,
    track,
    whole_number,
)
from reid_core.types import Modality, Sample

log = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".jsonl", ".csv")
COLUMNS = ("image", "modality", "pid", "camera", "tracklet", "time", "caption", "split", "bytes")
SPLITS = ("train", "val", "test", "query", "gallery")
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the file, with its values understood.

    Attributes:
        number: of the row, from 1.
        split: one of `SPLITS`.
        image: path relative to the manifest, absolute path or URI; "" in a text row about nothing.
        modality: of the row.
        pid, camera: -1 where unknown.
        tracklet: name of the track, "" where unknown.
        time: when it was seen, None where unknown.
        caption: the sentence of a text row, or one about the image; "" without.
        again: an earlier row has listed its image in the same split; this one adds a sentence.
    """

    number: int
    split: str
    image: str
    modality: Modality
    pid: int
    camera: int
    tracklet: str
    time: datetime | None
    caption: str
    again: bool = False

    def samples(self, tracklet: int = -1) -> Iterator[Sample]:
        """The row's sample; an image with a sentence gives two, with a further one the sentence."""
        if self.modality != Modality.TEXT and not self.again:
            yield self._sample(self.modality, "", tracklet)
        if self.caption:
            yield self._sample(Modality.TEXT, self.caption, tracklet)

    def _sample(self, modality: Modality, caption: str, tracklet: int) -> Sample:
        return Sample(self.image, modality, self.pid, self.camera, caption, tracklet, self.time)


def rows(path: Path, *, modality: Modality | None = None, times: bool = False) -> Iterator[Row]:
    """Read a manifest row by row; the bytes of images are not read.

    Names of columns, modalities, splits and the file's ending count without case, spaces around a
    value do not count, and a backslash in ``image`` is a slash.

    Args:
        path: file that ends with one of `SUFFIXES`.
        modality: of rows that say none; None where every row must.
        times: whether they are needed. Where not, one that cannot be understood is unknown, and
            a warning says how many there are: the column may be of another program.

    Raises:
        ValueError: names the file, and the row where it is one: no such column, a value that
            cannot be understood, an image that stands there twice with different ids.
    """
    identities: dict[bytes, tuple[int, int]] = {}
    whole, images = set[bytes](), set[bytes]()
    num_repeated, unread = 0, list[str]()
    try:
        for number, cells in enumerate(_cells(path, modality is not None), start=1):
            row = _parse(
                number, cells, modality, f"{path}, row {number}", None if times else unread
            )
            if row.image and row.pid != -1:
                first, pid = identities.setdefault(_digest(row.image), (number, row.pid))
                if pid != row.pid:
                    raise ValueError(
                        f"{path}, row {number}: {row.image} is identity {row.pid} here and {pid} "
                        f"in row {first}: keep one of the rows"
                    )
            num_repeated += not _is_new(whole, row.modality, row.image, row.caption)
            if row.modality != Modality.TEXT:
                is_new = _is_new(images, row.split, row.modality, row.image)
                row = replace(row, again=bool(row.caption) and not is_new)
            yield row
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a readable csv file: {error}; is a quote left open, or is it no text?"
        ) from error
    except (OSError, pa.ArrowException) as error:
        said = getattr(error, "strerror", None) or "damaged, or of another kind; write it again"
        raise ValueError(f"{path} is not a readable {path.suffix[1:]} file: {said}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    if num_repeated:
        log.warning("%s: %d rows repeat an earlier one", path, num_repeated)
    if unread:
        log.warning("%s; %d such times are unknown", unread[0], len(unread))


def _digest(*values: str) -> bytes:
    return hashlib.blake2b("\0".join(values).encode(), digest_size=8).digest()


def _is_new(known: set[bytes], *values: str) -> bool:
    """Whether some values were not known; now they are."""
    before = len(known)
    known.add(_digest(*values))
    return len(known) > before


def number_tracklets(names: Sequence[str]) -> list[int]:
    """Numbers of named tracks: the names themselves where all are whole, else in sorted order.

    Args:
        names: "" where unknown, which becomes -1.
    """
    known = sorted(set(names) - {""})
    if all(WHOLE.fullmatch(name) for name in known):
        numbers = {name: int(name) for name in known}
    else:
        numbers = {name: number for number, name in enumerate(known)}
    return [numbers.get(name, -1) for name in names]


def _cells(path: Path, may_lack_modality: bool) -> Iterator[Mapping[str, Any]]:
    """The cells of each row by the name of their column, in small letters."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path, may_lack_modality)
    elif suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            names = _names(path, next(table, []), may_lack_modality)
            for number, line in enumerate((line for line in table if line), start=1):
                if len(line) > len(names):
                    raise ValueError(
                        f"{path}, row {number}: {len(line)} cells, the first line names "
                        f"{len(names)} columns; a value with a comma needs quotes"
                    )
                yield dict(zip(names, line, strict=False))
    elif suffix == ".jsonl":
        yield from _json_lines(path)
    else:
        raise ValueError(f"{path}: a manifest ends with {', '.join(SUFFIXES)}")


def _parquet(path: Path, may_lack_modality: bool) -> Iterator[Mapping[str, Any]]:
    with pq.ParquetFile(path) as table:
        columns = table.schema_arrow.names
        names = dict(zip(columns, _names(path, columns, may_lack_modality), strict=True))
        wanted = [column for column, name in names.items() if name in COLUMNS and name != "bytes"]
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
            for cells in _in_micros(batch).to_pylist():
                row = {names[column]: cell for column, cell in cells.items()}
                if "image" not in row:
                    row["image"] = f"{path.name}#{number}"
                number += 1
                yield row


def _in_micros(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times of nanoseconds cut to microseconds, which is all that Python and a gallery know."""
    kinds = [
        pa.field(field.name, pa.timestamp("us", field.type.tz))
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns"
        else field
        for field in batch.schema
    ]
    return batch.cast(pa.schema(kinds), safe=False)


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    known: set[str] = set()
    number = 0
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if not line.strip():
                continue
            number += 1
            try:
                row = json.loads(line, object_pairs_hook=_once)
            except _TwiceError as error:
                raise ValueError(f"{path}, row {number} has two values of {error}") from error
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, row {number} is no JSON object: {line.strip()[:60]}")
            cells = {str(name).strip().lower(): cell for name, cell in row.items()}
            if not cells.keys() <= known:
                _warn_of_unread(path, cells.keys() - known)
                known |= cells.keys()
            yield cells


class _TwiceError(Exception):
    """A key that stands twice in an object."""


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return row


def _names(path: Path, columns: Iterable[str], may_lack_modality: bool) -> list[str]:
    """Names of the columns in small letters, checked."""
    names = [str(name).strip().lower() for name in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two columns {', '.join(twice)}")
    needed = {"image", "modality"} - ({"modality"} if may_lack_modality else set())
    missing = needed - set(names) - ({"image"} if "bytes" in names else set())
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(sorted(missing))}; it has "
            f"{', '.join(names) or 'none'}"
        )
    _warn_of_unread(path, names)
    return names


def _warn_of_unread(path: Path, names: Iterable[str]) -> None:
    if unread := [name for name in names if name not in COLUMNS]:
        known = ", ".join(COLUMNS)
        log.warning("%s: columns %s are not read; known are %s", path, ", ".join(unread), known)


def _parse(
    number: int,
    cells: Mapping[str, Any],
    default: Modality | None,
    where: str,
    unread: list[str] | None,
) -> Row:
    split = text(cells, "split", where).lower() or "train"
    if split not in SPLITS:
        raise ValueError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    named = text(cells, "modality", where).lower() or str(default or "")
    if named not in list(Modality):
        raise ValueError(
            f"{where}: modality {cells.get('modality')!r} is none of {', '.join(Modality)}"
        )
    modality = Modality(named)
    image, caption = (text(cells, name, where) for name in ("image", "caption"))
    if not is_name(image):
        raise ValueError(f"{where}: image {image!a:.60} is no name that a file can have")
    if modality == Modality.TEXT and not caption:
        raise ValueError(f"{where}: a text row needs a caption")
    if modality != Modality.TEXT and not image:
        raise ValueError(f"{where}: image is empty")
    return Row(
        number,
        split,
        slashed(image),
        modality,
        whole_number(cells.get("pid"), "pid", where),
        whole_number(cells.get("camera"), "camera", where, bits=32),  # as galleries keep them
        track(cells.get("tracklet"), where),
        _time(cells.get("time"), where, unread),
        caption,
    )


def _time(value: Any, where: str, unread: list[str] | None) -> datetime | None:
    """As `moment`; with a list its message goes there, and the time is unknown."""
    try:
        return moment(value, where)
    except ValueError as error:
        if unread is None:
            raise
        unread.append(str(error))
        return None
