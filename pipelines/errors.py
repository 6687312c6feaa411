"""Errors meant for the person at the terminal: what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Stops a command with exit code 2 and its message alone, without a traceback."""


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
