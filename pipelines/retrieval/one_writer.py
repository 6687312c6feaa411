"""One addition to a table at a time, so that no id gets two rows.

The database's merge of two writers that both find an id missing inserts it twice: neither sees the
other's row. A lock keeps them apart where a gallery is a folder; elsewhere what came twice goes.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.retrieval.gallery_rows import Filter

if TYPE_CHECKING:
    from lancedb.table import LanceTable

log = logging.getLogger(__name__)
_IDS_AT_ONCE = 1000  # a condition of the database


@contextmanager
def alone(uri: str | Path, name: str) -> Iterator[bool]:
    """Wait for other writers of a table, of all threads and processes that see the folder.

    Args:
        uri: of the gallery.
        name: of the table.

    Yields:
        Whether nobody else writes: False at a URI, and on a file system without locks.
    """
    if "://" in str(uri):
        yield False
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(Path(uri) / f".writing-{name}", flags, 0o666)
    try:
        yield _locked(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except InterruptedError:
        raise
    except OSError as error:
        log.debug("no locks here: %s", error)
        return False
    return True


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
