"""Errors meant for whoever sits at the terminal: what is wrong, where, and what to do."""

from __future__ import annotations

import dis
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_HOME, _PARTS = Path(__file__).parents[1], ("pipelines", "reid_core")


class UserError(Exception):
    """Stops a command with exit code 2 and its message alone, without a traceback."""


def is_own(error: BaseException) -> bool:
    """Whether a `raise` of this project made it, in words of its own, and not a library.

    Only the process in which it was raised can say so: a traceback is not sent to another one.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    raised = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raised and any(Path(code.co_filename).is_relative_to(_HOME / part) for part in _PARTS)


def for_users(error: Exception) -> str:
    """What to tell about an error that its user can put right; "" of one that is ours.

    Of a `ValueError` only the process in which it was raised can say that, see `is_own`.
    """
    if isinstance(error, UserError) or (isinstance(error, ValueError) and is_own(error)):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        names = " and ".join(str(name) for name in (error.filename, error.filename2) if name)
        return (
            f"{names}: {error.strerror}: see that the path is right and yours, and that its disk "
            "has room"
        )
    if isinstance(error, OSError) and is_own(error):
        return str(error.strerror or error)
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):
        return f"{error}: a link leads to itself; remove it"
    if isinstance(error, MemoryError):
        return "this machine has too little memory for that: take fewer or smaller images"
    if type(error).__name__ == "OutOfMemoryError":  # this module does not wait for torch or Ray
        if not type(error).__module__.startswith("torch"):
            return f"a machine has too little memory for that: take fewer at a time. {error}"
        return (
            "the GPU has too little memory left for that: take fewer images at a time, or see what "
            "else is on it (`nvidia-smi`)"
        )
    return ""


@contextmanager
def own_words_for_users() -> Iterator[None]:
    """Within the block a `ValueError` that says what is wrong in words of ours is for the user.

    Raises:
        UserError: in its place. One of a library, of which nobody knows who is to blame, stays.
    """
    try:
        yield
    except ValueError as error:
        if not is_own(error):
            raise
        verdict = UserError(str(error))
        for note in getattr(error, "__notes__", ()):
            verdict.add_note(note)
        raise verdict from error


class RunFailedError(Exception):
    """A run was ended by what its user cannot be blamed for: exit code 1 and the message.

    The message says where the traceback is.
    """


class Terminated(BaseException):
    """A signal asked this process to end: what is open is closed on the way out.

    Args:
        number: of the signal; the command's exit code is 128 more.

    Attributes:
        said: what its user is told; a command that cannot go on has words of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.said = (
            "ended by a signal: what is finished is kept; the same command goes on from there"
        )


@contextmanager
def said_at_the_end(words: str) -> Iterator[None]:
    """What `Terminated` tells where it ends this block."""
    try:
        yield
    except Terminated as ended:
        ended.said = words
        raise


def end_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM raise `Terminated`; only the main thread can say so."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


class StaleBankError(RuntimeError):
    """A call reached a memory bank that was restarted, or belongs to another worker group.

    The worker group fails and starts again from the last checkpoint, which also refills the bank.
    """

    def __init__(self, sent: int, current: int) -> None:
        super().__init__(sent, current)
        self.sent, self.current = sent, current

    def __str__(self) -> str:
        return (
            f"the memory bank serves incarnation {self.current}, this call was made for "
            f"{self.sent}: reload the last checkpoint"
        )


class BarrierTimeoutError(RuntimeError):
    """Some workers did not deliver their features in time; names them and the setting."""

    def __init__(self, missing: list[int], timeout_s: float) -> None:
        super().__init__(missing, timeout_s)
        self.missing, self.timeout_s = missing, timeout_s

    def __str__(self) -> str:
        return (
            f"workers {self.missing} delivered no features within trainer.barrier_timeout_s="
            f"{self.timeout_s:g}: see their logs, or raise the limit for larger data"
        )
