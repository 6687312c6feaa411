"""What a run has warned of, kept in its folder.

On a cluster most of a run happens in tasks and actors, whose warnings no terminal shows. What is
kept is shown all the same where it would have been.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.storage.files import append_line

FILE = "warnings.log"
_OURS = "pipelines", "reid_core"


_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ")


class Kept(logging.Handler):
    """Warnings of this process, remembered until it is known which folder they belong to."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._path: Path | None = None
        self._early: list[logging.LogRecord] = []
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def write_to(self, run_dir: Path) -> None:
        """Those that were remembered, and from now on all, go into a run's folder."""
        self._path = run_dir / FILE
        for record in self._early:
            self._write(record, self._path)
        self._early.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if self._path is None:
            self._early.append(record)
        else:
            self._write(record, self._path)
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and self._is_alone(record.name):
            last.handle(record)

    def _write(self, record: logging.LogRecord, path: Path) -> None:
        try:
            append_line(path, self.format(record))
        except OSError:
            self.handleError(record)

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
        return all(isinstance(one, Kept) for one in handlers) and handlers[:1] == [self]


def keep(run_dir: Path) -> Kept:
    """Write the warnings of this process into a run's folder, as long as it lives."""
    handler = _added()
    handler.write_to(run_dir)
    return handler


@contextmanager
def kept(run_dir: Path | None = None) -> Iterator[Kept]:
    """Write warnings into a run's folder while the block runs.

    Args:
        run_dir: None where nothing may be written yet: `Kept.write_to` says when.
    """
    handler = _added() if run_dir is None else keep(run_dir)
    try:
        yield handler
    finally:
        for name in _OURS:
            logging.getLogger(name).removeHandler(handler)


def _added() -> Kept:
    handler = Kept()
    for name in _OURS:
        logging.getLogger(name).addHandler(handler)
    return handler


def timed(line: str) -> tuple[str, str]:
    """A line of the file -> (when, "" for a line that continues the one before; the text)."""
    time = _TIME.match(line)
    return (time[1], line[time.end() :]) if time else ("", line)


def read(run_dir: Path) -> list[str]:
    """Its lines, oldest first; none where nothing was warned of."""
    try:
        return (run_dir / FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
