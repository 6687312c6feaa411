"""Errors meant for whoever sits at the terminal: what is wrong, where, and what to do."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class UserError(Exception):
    """Stops a command with exit code 2 and its message alone, without a traceback."""


class RunFailedError(Exception):
    """A run was ended by what its user cannot be blamed for: exit code 1 and the message.

    The message says where the traceback is.
    """


class Terminated(BaseException):
    """A signal asked this process to end: what is open is closed on the way out.

    Args:
        number: of the signal; the command's exit code is 128 more.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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
