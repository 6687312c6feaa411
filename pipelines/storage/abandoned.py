"""What killed processes leave: held by a lock while it is used, removed when nobody holds it."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

_PARTIAL = f".*.{'[0-9a-f]' * 12}.partial"  # as `files.replace_file` names them


def hold(path: Path) -> int:
    """Keep a file or folder from `remove_abandoned`.

    Returns:
        A descriptor: it is held until that is closed, or the process ends in any way.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it is not there, or its file system has no locks.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def hold_file(path: Path) -> int:
    """`hold` a file, made where it is not there; also seen by other machines, on a shared folder.

    Returns, raises: as `hold`.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path, flags, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who held it before has removed it


def remove_abandoned(folder: Path, pattern: str, *, own: Path | None = None) -> list[Path]:
    """Delete files and folders that nobody holds; returns them.

    Args:
        folder: where they lie.
        pattern: of their names.
        own: is left alone.
    """
    removed = []
    for path in folder.glob(pattern):
        if path == own:
            continue
        with suppress(OSError):  # those of other users, and those that are in use, stay
            handle = hold(path)
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed.append(path)
            finally:
                os.close(handle)
    return removed


def remove_partial(folder: Path, *inner: str) -> list[Path]:
    """Delete what `replace_file` began and a killed process never finished; returns it.

    Args:
        folder: into which nobody else writes.
        inner: patterns of folders in it that are looked through too, as "stages/*/".
    """
    removed = [path for place in ("", *inner) for path in folder.glob(f"{place}{_PARTIAL}")]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed
