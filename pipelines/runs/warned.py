"""What a run has warned of, kept in its folder.

On a cluster most of a run happens in tasks and actors, whose warnings no terminal shows. What is
kept is shown all the same where it would have been.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.storage.files import append_line

FILE = "warnings.log"
_OURS = "pipelines", "reid_core"
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ")


class Kept(logging.Handler):
    """Writes warnings into a run's folder, and remembers them until it is known which."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._path: Path | None = None
        self._early: list[logging.LogRecord] = []
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    @property
    def early(self) -> list[logging.LogRecord]:
        """Those that are remembered."""
        return list(self._early)

    def write_to(self, run_dir: Path, before: Sequence[logging.LogRecord] = ()) -> None:
        """All go into a run's folder from now on; of those before, the ones that are not in it.

        A run that goes on passes the same gate again, and is warned of the same.

        Args:
            run_dir: the run's folder.
            before: what else was warned of, earlier.
        """
        there = {text for _, text in messages(read(run_dir))}
        self._path = run_dir / FILE
        for record in (*before, *self._early):
            if record.getMessage() not in there:
                there.add(record.getMessage())
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


def read(run_dir: Path) -> list[str]:
    """Its lines, oldest first; none where nothing was warned of."""
    try:
        return (run_dir / FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def messages(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Lines of the file -> (when, text) of each warning, which may have several lines."""
    result: list[tuple[str, str]] = []
    for line in lines:
        time = _TIME.match(line)
        if time is None and result:
            when, text = result[-1]
            result[-1] = when, f"{text}\n{line}"
        else:
            result.append((time[1], line[time.end() :]) if time else ("", line))
    return result


class News:
    """What runs without a terminal of their own have warned of, each warning once.

    Args:
        known: what has been shown already.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        self._known = known
        self._seen: dict[Path, int] = {}  # lines of each run

    def skip(self, run_dir: Path) -> None:
        """An earlier command has shown what stands in a run's folder; not asked again."""
        self._seen.setdefault(run_dir, len(read(run_dir)))

    def of(self, run_dir: Path) -> list[str]:
        """The warnings of a run since the last call, with their times."""
        seen = self._seen.get(run_dir, 0)
        lines = read(run_dir)[seen:]
        self._seen[run_dir] = seen + len(lines)
        return [f"{when} {text}" for when, text in messages(lines) if text not in self._known]
