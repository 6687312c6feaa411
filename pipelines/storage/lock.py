"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import UserError

log = logging.getLogger(__name__)
_LOCK = ".lock"
_FREE_POLL_S = 0.5


class InUseError(UserError):
    """Another process works in a folder."""


@contextmanager
def held(run_dir: Path, does: str = "trains") -> Iterator[None]:
    """Keep the run directory to this process; the system gives it back however the process ends.

    Args:
        run_dir: run directory, or another folder that one command writes.
        does: what a process does in it, in the words of whoever is refused.

    Raises:
        UserError: not writable.
        InUseError: another process of this machine works in it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC  # may hold nobody's data
        lock = os.fdopen(os.open(run_dir / _LOCK, flags, 0o666), "r+")
    except OSError as error:
        raise unwritable(run_dir, error) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(
                f"another process {does} in {run_dir}: wait for it, end it, or choose another --out"
            ) from error
        except OSError:
            log.warning("the file system of %s has no locks: run one process in it", run_dir)
        yield


def wait_until_free(run_dir: Path, within_s: float) -> None:
    """Wait while another process works in a run directory, so many seconds at most."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            with held(run_dir):
                return
        except InUseError:
            time.sleep(_FREE_POLL_S)


def unwritable(run_dir: Path, error: OSError) -> UserError:
    """What a user is told whose folder takes no file."""
    return UserError(
        f"cannot write to {run_dir}: {error.strerror}; choose another --out, or make room"
    )
