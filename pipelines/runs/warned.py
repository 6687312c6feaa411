"""What a run has warned of, kept in its folder.

On a cluster most of a run happens in tasks and actors, whose warnings no terminal shows. What is
kept is shown all the same where it would have been.
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
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and self._is_alone(record.name):
            last.handle(record)

    def _is_alone(self, name: str) -> bool:
        """Whether no handler but ours would show a record of a logger.

        Where there is none at all, `logging` has its last resort, which ours would switch off.
        Of several of ours the first answers True.
        """
        handlers, log = list[logging.Handler](), logging.getLogger(name)
        while True:
            handlers += log.handlers
            if not log.propagate or log.parent is None:
                break
            log = log.parent
        return all(isinstance(one, _Kept) for one in handlers) and handlers[:1] == [self]


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
