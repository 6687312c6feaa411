"""LanceDB: opening it, and its errors as messages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.storage.files import reason

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection

ERRORS = (OSError, RuntimeError, ValueError, pa.ArrowException)
"""What the database raises."""
_INSTALL = 'pip install -c constraints.txt -e ".[gallery]"'


@contextmanager
def guarded(what: str, then: str = "what was there before is still there") -> Iterator[None]:
    """Errors of the database as messages; its own transactions keep what was there.

    Raises:
        UserError: in the place of one of `ERRORS`.
    """
    try:
        yield
    except ERRORS as error:
        raise UserError(f"{what}: {first_line(error)}; {then}") from error


def first_line(error: Exception) -> str:
    """What an error of the database says, without the places of its source."""
    return reason(error).splitlines()[0].partition(", /")[0][:200]


def connect(uri: str | Path) -> LanceDBConnection:
    """The database at a folder or URI.

    Raises:
        UserError: LanceDB is not installed, or the place cannot be opened.
    """
    try:
        import lancedb
    except ImportError as error:
        raise UserError(f"a gallery needs LanceDB: {_INSTALL}") from error
    # It warns at every fork, also where a subprocess runs another program at once.
    warnings.filterwarnings("ignore", message="lancedb fork support is experimental")
    with guarded(f"cannot open {uri}"):
        # A service sees at once what another process adds or takes away.
        database = lancedb.connect(str(uri), read_consistency_interval=timedelta(0))
    assert isinstance(database, lancedb.db.LanceDBConnection)
    return database
