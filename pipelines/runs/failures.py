"""Why a worker failed: a file for each in the run's folder, and its cause in words."""

from __future__ import annotations

import errno
import logging
import re
import socket
import tempfile
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from pipelines.errors import BarrierTimeoutError, UserError, own_words_for_users
from pipelines.storage.files import own_folder, replace_file

log = logging.getLogger(__name__)
FOLDER = "failures"
_NAME = re.compile(r"rank-\d+-attempt-(\d+)\.txt")
_MOST_ATTEMPTS = 50  # a run on spot machines fails for months
_LINES = 50
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What the others say when one of them is gone.
_COLLATERAL = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|incarnation", re.I
)

_ACTOR = re.compile(r"class_name: (\w+)")  # in what Ray says of one that is gone


class LastLines(logging.Handler):
    """Keeps the last lines that this process has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.lines.append(self.format(record))


def next_attempt(run_dir: Path) -> int:
    """Number of the attempt that begins now; from 1, over all commands that trained here."""
    return 1 + max(_attempts(run_dir), default=0)


@contextmanager
def reported(run_dir: Path, *, rank: int, attempt: int, node: str = "") -> Iterator[None]:
    """What fails within the block is written down, and raised again.

    Args:
        run_dir: of the run.
        rank, attempt: of this worker.
        node: what the cluster calls this machine.

    Raises:
        UserError: for an `OSError` where results cannot be written: what to do. For a `ValueError`
            of this project, see `pipelines.errors.own_words_for_users`.
    """
    known = LastLines()
    root = logging.getLogger()
    root.addHandler(known)
    try:
        try:
            with own_words_for_users():
                yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise UserError(
                f"cannot write an epoch's results ({error.strerror}): make room in {run_dir} and "
                f"{tempfile.gettempdir()}, then run the same command again; it goes on from the "
                "last checkpoint, which is untouched"
            ) from error
    except Exception as error:
        write(run_dir, error, rank=rank, attempt=attempt, node=node, lines=tuple(known.lines))
        raise
    finally:
        root.removeHandler(known)


def write(
    run_dir: Path,
    error: BaseException,
    *,
    rank: int,
    attempt: int,
    node: str = "",
    lines: tuple[str, ...] = (),
) -> None:
    """Write down one worker's failure; a folder that takes nothing is no further failure."""
    text = [
        f"worker {rank}, attempt {attempt}, on {socket.gethostname()} {node}".rstrip(),
        *getattr(error, "__notes__", ()),
        "",
        "".join(traceback.format_exception(error)).rstrip(),
        "",
        f"the last lines of its log ({len(lines)}):",
        *lines,
    ]
    try:
        own_folder(run_dir / FOLDER)
        replace_file(path(run_dir, rank, attempt), "\n".join(text) + "\n")
        for old in (run_dir / FOLDER).iterdir():
            number = _attempt(old)
            if number is not None and number <= attempt - _MOST_ATTEMPTS:
                old.unlink(missing_ok=True)
    except OSError as unwritable:
        log.warning("a failure cannot be written to %s: %s", run_dir / FOLDER, unwritable)


def path(run_dir: Path, rank: int, attempt: int) -> Path:
    """Where a worker's failure is written."""
    return run_dir / FOLDER / f"rank-{rank}-attempt-{attempt}.txt"


def culprit(errors: Mapping[int, BaseException]) -> int:
    """The worker whose error says most: what others met because of it is passed over."""

    def order(rank: int) -> tuple[bool, bool, bool, bool, int]:
        error = errors[rank]
        collateral = not died(error) and bool(_COLLATERAL.search(str(error)))
        is_of_users = isinstance(error, UserError)
        return not is_of_users, collateral, died(error), _is_of_an_actor(error), rank

    return min(errors, key=order)


def cause(error: BaseException, rank: int) -> str:
    """A worker's error in one sentence, and what to do where that is known."""
    if isinstance(error, (UserError, BarrierTimeoutError)):
        return str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f"the GPU of worker {rank} has too little memory: smaller batches, more workers, "
            "trainer.precision=bf16 or trainer.activation_checkpointing=true need less"
        )
    if _is_of_an_actor(error):
        named = _ACTOR.search(str(error))
        who = f"the actor {named[1]}" if named else "an actor, most likely the memory bank,"
        if named and named[1] == "BankActor":
            who = "the memory bank, on the machine of this command,"
        return (
            f"{who} ended without a word to worker {rank}: its machine is gone, or the system "
            "ended it, most often for want of memory (`dmesg` of that machine says so)"
        )
    if died(error):
        return (
            f"worker {rank} ended without a word: its machine is gone, or the system ended it, "
            "most often for want of memory (`dmesg` of that machine says so)"
        )
    said = next(iter(str(error).splitlines()), "")
    return f"worker {rank} met {type(error).__name__}: {said[:300]}".rstrip(": ")


def is_final(error: BaseException) -> bool:
    """Whether it is sure to come again: what settings or data are the reason of, see `reported`."""
    return isinstance(error, UserError) and not died(error)


def died(error: BaseException) -> bool:
    """Whether the worker, or an actor that it asked, was ended from outside, in Ray's words."""
    return type(error).__name__ == "WorkerHealthCheckFailedError" or _is_of_an_actor(error)


def _is_of_an_actor(error: BaseException) -> bool:
    """Whether a worker, alive, met the end of what it asked: of the bank beside the driver."""
    return any(base.__name__ == "RayActorError" for base in type(error).__mro__)


def was_preempted(error: BaseException) -> bool:
    """Whether Ray knows that the worker's machine was taken away."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))


def _attempts(run_dir: Path) -> list[int]:
    folder = run_dir / FOLDER
    numbers = map(_attempt, folder.iterdir()) if folder.is_dir() else ()
    return [number for number in numbers if number is not None]


def _attempt(file: Path) -> int | None:
    match = _NAME.fullmatch(file.name)
    return int(match[1]) if match else None
