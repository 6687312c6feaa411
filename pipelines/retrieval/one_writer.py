"""One addition to a table at a time, so that no id gets two rows.

The database's merge of two writers that both find an id missing inserts it twice: neither sees the
other's row. A lock keeps them apart where a gallery is a folder; elsewhere what came twice goes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.retrieval.gallery_rows import Filter

if TYPE_CHECKING:
    from lancedb.table import LanceTable

log = logging.getLogger(__name__)
_IDS_AT_ONCE = 1000  # a condition of the database
_SAID_AFTER_S = 5.0
_GIVEN_UP_AFTER_S = 60.0  # no merge takes as long, but one whose machine died
_ASKED_EVERY_S = 0.05


@contextmanager
def alone(uri: str | Path, name: str) -> Iterator[bool]:
    """Wait for other writers of a table, of all threads and processes that see the folder.

    Args:
        uri: of the gallery.
        name: of the table.

    Yields:
        Whether nobody else writes: False at a URI, and on a file system without locks.

    Raises:
        UserError: another one has written for a minute; says what to do.
    """
    if "://" in str(uri):
        yield False
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    path = Path(uri) / f".writing-{name}"
    handle = os.open(path, flags, 0o666)
    try:
        yield _locked(handle, path)
    finally:
        os.close(handle)


def _locked(handle: int, path: Path) -> bool:
    began, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - began
        except OSError as error:
            log.debug("no locks here: %s", error)
            return False
        else:
            return True
        if waited > _GIVEN_UP_AFTER_S:
            raise UserError(
                f"another addition to {path.parent} has not ended within {waited:.0f} s: try again "
                "when it has. Where none runs on any machine, the one that wrote is gone and its "
                f"lock is not: delete {path}, then try again"
            )
        if waited > _SAID_AFTER_S and not said:
            log.warning("another addition to %s is waited for", path.parent)
            said = True
        time.sleep(_ASKED_EVERY_S)


def remove_repeated(table: LanceTable) -> int:
    """Delete all rows but the last of every id that has several; returns how many."""
    ids = table.search().select(["id"]).to_arrow()["id"].value_counts()
    return remove_surplus(table, [x["values"] for x in ids.to_pylist() if x["counts"] > 1])


def remove_surplus(table: LanceTable, ids: Sequence[str]) -> int:
    """Delete all rows but the last of each of some ids; returns how many.

    Of two writers the later one sees both rows. Where both do, they delete the same ones.
    """
    removed = 0
    for start in range(0, len(ids), _IDS_AT_ONCE):
        condition = Filter(ids=tuple(ids[start : start + _IDS_AT_ONCE])).sql()
        asked = len(ids[start : start + _IDS_AT_ONCE])
        if table.count_rows(condition) <= asked:
            continue
        rows = table.search().where(condition).select(["id"]).with_row_id(True).to_arrow()
        places = sorted(zip(rows["_rowid"].to_pylist(), rows["id"].to_pylist(), strict=True))
        last = {name: place for place, name in places}
        surplus = [str(place) for place, name in places if last[name] != place]
        for first in range(0, len(surplus), _IDS_AT_ONCE):
            some = ", ".join(surplus[first : first + _IDS_AT_ONCE])
            table.delete(f"_rowid IN ({some})")
        removed += len(surplus)
    return removed
