"""Local files: read what is a file and no more, write whole and never through a link."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

MAX_IMAGE_BYTES = 512 * 2**20
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON and YAML can say."""


class UnfitFileError(OSError):
    """What a name leads to is no file that could be read; trying again does not help."""


def reason(error: Exception) -> str:
    """What an error says, without its number and the file, which whoever tells it names."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def read_regular(path: str | Path, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Content of a regular file; pipes and devices, which may never end, are not opened to wait.

    Raises:
        UnfitFileError: a pipe, socket or device, or more than `max_bytes`.
        OSError: there is no such file, or it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as file:
        state = os.fstat(handle)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise UnfitFileError(errno.EINVAL, "No regular file (a pipe, socket or device)")
        if state.st_size > max_bytes:
            raise _too_large(max_bytes)
        data = file.read(max_bytes + 1)
        while 0 < len(data) <= max_bytes and (more := file.read(max_bytes + 1 - len(data))):
            data += more
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> UnfitFileError:
    return UnfitFileError(errno.EFBIG, f"Larger than an image may be ({max_bytes / 2**20:.0f} MiB)")


def replace_file(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, whenever the process or the machine ends.

    The bytes go to a new file of a random name beside it, reach the disk, and take the name's
    place. A link that stands there is replaced and not written through.

    Args:
        path: its folder exists.
        content: text (as UTF-8), bytes, or what writes into an open file.

    Raises:
        OSError: the folder cannot be written, or the disk is full; what was there stays.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(temporary, flags, 0o666)
    try:
        with open(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk does not say whose
        raise


def own_folder(folder: Path) -> Path:
    """Make a folder, with those above it, into which files may be written; returns it.

    Raises:
        OSError: it cannot be made, or a link stands in its place that would lead elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "A link stands where a folder of its own belongs", str(folder))
    return folder


def to_json(content: object, *, indent: int | None = 1) -> str:
    """JSON that every reader takes, with a line's end.

    Raises:
        ValueError: a number that is not finite, which JSON does not have; names its place.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False) + "\n"
    except ValueError as error:
        place = _not_finite(content, "")
        raise ValueError(f"{place or 'a value'} is no number that JSON has: {error}") from error


def write_json(path: Path, content: object, *, indent: int | None = 1) -> None:
    """Write JSON by `replace_file`; see `to_json`."""
    replace_file(path, to_json(content, indent=indent))


def finite(content: object) -> object:
    """The same without what JSON cannot say: entries that are no finite number are left out.

    A value that could not be computed is absent; in a list, whose places mean something, null.
    """
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items() if not _is_nan(value)}
    if isinstance(content, (list, tuple)):
        return [None if _is_nan(value) else finite(value) for value in content]
    return content


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log, not through a link.

    Raises:
        OSError: it cannot be written, or a link stands in its place.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(line.rstrip("\n") + "\n")


def _not_finite(content: object, place: str) -> str:
    if _is_nan(content):
        return place
    if isinstance(content, Mapping):
        inner = ((f"{place}.{key}".lstrip("."), value) for key, value in content.items())
    elif isinstance(content, (list, tuple)):
        inner = ((f"{place}[{number}]", value) for number, value in enumerate(content))
    else:
        return ""
    return next((name for key, value in inner if (name := _not_finite(value, key))), "")
