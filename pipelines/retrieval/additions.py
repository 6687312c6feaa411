"""Where additions to a gallery embed: a folder that an interrupted one leaves, and goes on in."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import UserError
from pipelines.storage import abandoned

log = logging.getLogger(__name__)
_LOCK = ".lock"


def remove_abandoned_additions(uri: str | Path) -> list[Path]:
    """Delete the vectors of additions that were interrupted; those underway stay."""
    local, prefix = underway(uri)
    removed = []
    for folder in sorted({path.with_suffix("") for path in local.glob(f"{prefix}*")}):
        lock = folder.with_suffix(_LOCK)
        with suppress(OSError), _released(abandoned.hold_file(lock)):
            if folder.is_dir():
                shutil.rmtree(folder)
                removed.append(folder)
            lock.unlink()
    return removed


def underway(uri: str | Path) -> tuple[Path, str]:
    """Where the vectors of additions lie while they are embedded, and how their names begin."""
    if "://" not in str(uri):
        return Path(uri), ".adding-"
    return Path.home() / ".cache" / "crossreid", f".adding-{_hashed(uri)}-"


def folders(uri: str | Path, of_source: Sequence[object], chosen: bytes) -> list[Path]:
    """Where an addition may embed, as `held` takes them.

    First a folder of the source: images may have come since an interruption. Beside another
    process that adds from it, one of what is chosen.

    Args:
        uri: of the gallery.
        of_source: what the vectors of a source depend on.
        chosen: what of it is to be embedded.
    """
    local, prefix = underway(uri)
    names = _hashed(*of_source), _hashed(*of_source, hashlib.blake2b(chosen).hexdigest())
    return [local / f"{prefix}{name}" for name in names]


def _hashed(*facts: object) -> str:
    return hashlib.blake2b("\n".join(map(str, facts)).encode(), digest_size=6).hexdigest()


@contextmanager
def held(places: Sequence[Path]) -> Iterator[Path]:
    """The first of some folders that no process works in, made where it is not there.

    A file beside it is locked, which other machines see on a shared file system, as they do not
    see the lock of a folder.

    Raises:
        UserError: other processes work in all of them.
    """
    for folder in places:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(_LOCK)
        try:
            handle = abandoned.hold_file(lock)
        except BlockingIOError:
            continue
        except OSError:
            log.warning("the file system of %s has no locks: add from one process", lock)
            handle = os.open(os.devnull, os.O_RDONLY)
        with _released(handle):
            folder.mkdir(exist_ok=True)
            yield folder
            lock.unlink(missing_ok=True)
        return
    raise UserError(
        f"another process adds the same images (in {places[-1]}): wait for it, or end it"
    )


@contextmanager
def _released(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)
