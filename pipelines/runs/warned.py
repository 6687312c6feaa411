"""What a run has warned of, kept in its folder.

On a cluster most of a run happens in tasks and actors, whose warnings no terminal shows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.storage.files import append_line

FILE = "warnings.log"
_OURS = "pipelines", "reid_core"


class _Kept(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            append_line(self._path, self.format(record))
        except OSError:
            self.handleError(record)


def keep(run_dir: Path) -> logging.Handler:
    """Write the warnings of this process into a run's folder, as long as it lives."""
    handler = _Kept(run_dir / FILE)
    for name in _OURS:
        logging.getLogger(name).addHandler(handler)
    return handler


@contextmanager
def kept(run_dir: Path) -> Iterator[None]:
    """`keep` while the block runs."""
    handler = keep(run_dir)
    try:
        yield
    finally:
        for name in _OURS:
            logging.getLogger(name).removeHandler(handler)


def read(run_dir: Path) -> list[str]:
    """Its lines, oldest first; none where nothing was warned of."""
    try:
        return (run_dir / FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
