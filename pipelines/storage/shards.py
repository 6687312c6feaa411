"""The bytes of images, wherever they are: a file, a URI, or a row of a Parquet file.

A converted data set is a folder (or any location that pyarrow or fsspec can open) with

    manifest.parquet            the samples of all splits, in order
    images/part-00000.parquet   columns image and bytes, one row per image
    images/index.parquet        which row of which part holds an image

Images keep the names that they had, so a sample means the same before and after conversion; those
that lay outside the root have new ones.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import fsspec.core
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from pipelines.storage import http
from pipelines.storage.files import MAX_IMAGE_BYTES, UnfitFileError, read_regular

log = logging.getLogger(__name__)
PART = "images/part-{:05d}.parquet"
INDEX = "images/index.parquet"
_URI = re.compile(r"(?:^|/)([a-z][a-z0-9+.-]+):/+(?=[^/])")
_ROW = re.compile(r"(.+\.parquet)#(\d+)")
# What no second try mends; anything else may be a network or a server that recovers.
_LASTING = (
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    UnfitFileError,
)
_LASTING_NUMBERS = (errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO)
_GCS_LIMIT = "retry_limit_seconds"  # without it Google's client tries for a quarter of an hour
_PAUSES_S = (0.2, 1.0, 5.0)


def filesystem(location: str | Path) -> tuple[arrow_fs.FileSystem, str]:
    """What opens a local path or URI, and the path to give it.

    Args:
        location: path, or any URI that pyarrow or an installed fsspec package understands.

    Raises:
        ValueError: nothing understands the URI.
    """
    if http.is_http(str(location)):
        raise ValueError(f"{location}: http names single images of a manifest, no data set")
    if "://" not in str(location):
        return arrow_fs.LocalFileSystem(), str(Path(location).absolute())
    try:
        opened, path = arrow_fs.FileSystem.from_uri(_limited(str(location)))
        return opened, path
    except pa.ArrowInvalid:
        pass
    try:
        opened, path = fsspec.core.url_to_fs(str(location))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{location} cannot be opened: {error}") from error
    return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(opened)), path


def _limited(uri: str) -> str:
    """The URI of a file system that gives up after a while."""
    if not uri.startswith(("gs://", "gcs://")) or _GCS_LIMIT in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{_GCS_LIMIT}=10"


def location(path: str | Path) -> str:
    """The URI that a path leads to, or the path itself where it names a file.

    Paths keep one slash of a URI's two: `Path("s3://bucket/set") / "a.jpg"` is found again here,
    also behind a root that it was joined to.
    """
    matches = _URI.finditer(str(path))
    result = [match for match in matches if match.start() == 0 or match[1] in _schemes()]
    if not result:
        return str(path)
    slashes = ":///" if result[-1][1] == "file" else "://"
    return f"{result[-1][1]}{slashes}{str(path)[result[-1].end() :]}"


def parquet_row(location: str) -> tuple[str, int] | None:
    """The file and the number where a name leads to a row of a Parquet file, else None."""
    row = _ROW.fullmatch(location)
    return (row[1], int(row[2])) if row else None


@lru_cache(maxsize=1)
def _schemes() -> frozenset[str]:
    """Those that something can open; behind a slash, "night:" is the name of a folder."""
    of_arrow = {"file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "mock"}
    return frozenset(of_arrow | set(fsspec.available_protocols()))


def read_bytes(path: Path) -> bytes:
    """Content of one image.

    Args:
        path: a data set's root / a sample's image. It may lead to a file; to a row of a Parquet
            file ("set.parquet#3"); into a converted data set; the root or the image may be a URI.

    Raises:
        OSError: there is no such image, or its storage fails, four times in a row.
    """
    for pause_s in _PAUSES_S:
        try:
            return _read(path)
        except _LASTING:
            raise
        except OSError as error:
            if error.errno in _LASTING_NUMBERS:
                raise
            log.warning("%s: %s; reading it again in %g s", location(path), error, pause_s)
            time.sleep(pause_s)
            _column.cache_clear()  # what is open may be what has broken
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError as error:  # a name that no file can have
        raise UnfitFileError(errno.EINVAL, str(error), str(path)) from error
    try:
        return _read_elsewhere(path)
    except ValueError as error:  # nothing opens the URI, or what is there is no Parquet file
        raise UnfitFileError(errno.EINVAL, str(error), location(path)) from error


_opened: dict[Path, Shards] = {}  # by root, what this process has read from


def _read_elsewhere(path: Path) -> bytes:
    if http.is_http(location(path)):  # single images: no rows, and no index above them
        return read_file(location(path), max_bytes=MAX_IMAGE_BYTES)
    row = parquet_row(location(path))
    if row:
        return _column(row[0]).read(row[1])
    is_uri = "://" in location(path)
    parents = [root for root in path.parents if ("://" in location(root)) == is_uri]
    for root in parents:
        if root in _opened:
            return _opened[root].read_bytes([path.relative_to(root).as_posix()])[0]
    if is_uri:
        with suppress(FileNotFoundError):
            return read_file(location(path), max_bytes=MAX_IMAGE_BYTES)
    for root in parents:
        if has_file(f"{location(root)}/{INDEX}"):
            _opened[root] = Shards(location(root))
            return _opened[root].read_bytes([path.relative_to(root).as_posix()])[0]
    raise FileNotFoundError(2, "No such image", location(path))


def has_file(name: str) -> bool:
    """Whether a path or URI leads to a file."""
    opened, path = filesystem(name)
    info: arrow_fs.FileInfo = opened.get_file_info(path)
    return bool(info.type == arrow_fs.FileType.File)


def read_file(name: str, *, max_bytes: int | None = None) -> bytes:
    """Content of a file that a path or URI leads to.

    Raises:
        OSError: there is none, or it is larger than `max_bytes`.
    """
    if http.is_http(name):
        return http.read(name, max_bytes=max_bytes or MAX_IMAGE_BYTES)
    opened, path = filesystem(name)
    with opened.open_input_stream(path) as stream:
        data: bytes = stream.read(None if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise UnfitFileError(27, f"Larger than an image may be ({max_bytes / 2**20:.0f} MiB)", name)
    return data


class Shards:
    """Random access to the images of a converted data set.

    Args:
        root: folder or URI that `crossreid data convert` wrote.

    Raises:
        OSError: it holds no converted data set.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = str(root).rstrip("/")
        opened, path = filesystem(self._root)
        index = pq.read_table(f"{path}/{INDEX}", filesystem=opened)
        # Sorted bytes: every process that decodes holds them, and a dict would take ten times more.
        names = np.array([name.encode() for name in index["image"].to_pylist()], dtype="S")
        order = np.argsort(names)
        self._names = names[order]
        self._parts, self._rows = (index[name].to_numpy()[order] for name in ("part", "row"))

    def read_bytes(self, images: Sequence[str]) -> list[bytes]:
        """Encoded images, in the order of the names.

        Args:
            images: names as in the samples.

        Raises:
            FileNotFoundError: an image is in no shard; names it.
        """
        result = []
        for image in images:
            place = int(np.searchsorted(self._names, image.encode()))
            if place == len(self._names) or self._names[place] != image.encode():
                raise FileNotFoundError(2, f"No such image in the shards of {self._root}", image)
            part = f"{self._root}/{PART.format(self._parts[place])}"
            result.append(_column(part).read(int(self._rows[place])))
        return result


class _Column:
    """Column ``bytes`` of one Parquet file, read by row group."""

    def __init__(self, location: str) -> None:
        opened, path = filesystem(location)
        local = isinstance(opened, arrow_fs.LocalFileSystem)
        source = pa.memory_map(path) if local else opened.open_input_file(path)
        self._file = pq.ParquetFile(source)
        if "bytes" not in self._file.schema_arrow.names:
            raise UnfitFileError(errno.EINVAL, "No column bytes, which holds images", location)
        groups = range(self._file.num_row_groups)
        sizes = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._ends = np.cumsum(sizes)
        self._lock = threading.Lock()  # a ParquetFile serves one reader at a time
        self._group = lru_cache(maxsize=2)(self._read_group)

    def read(self, row: int) -> bytes:
        if not 0 <= row < self._file.metadata.num_rows:
            raise FileNotFoundError(2, f"No row {row} in a file of {self._file.metadata.num_rows}")
        group = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        with self._lock:
            content: bytes = self._group(group)[row - start].as_py()
        return content

    def _read_group(self, group: int) -> pa.ChunkedArray:
        return self._file.read_row_group(group, columns=["bytes"], use_threads=False)["bytes"]


@lru_cache(maxsize=256)
def _column(location: str) -> _Column:
    return _Column(location)
