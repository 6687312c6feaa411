"""How a run ends early: the step is finished, its state is kept, and the same command goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from pipelines.errors import Terminated, end_on_signals
from pipelines.runs.console import say

T = TypeVar("T")
GRACE_S = 25.0  # Kubernetes kills after 30
_POLL_S = 0.2


@dataclass
class Signals:
    """What has arrived within the block.

    Attributes:
        asked: number of the signal that asked for an end; None without.
    """

    asked: int | None = None


@contextmanager
def gently(
    grace_s: float = GRACE_S, *, what: str = "this step is finished and kept"
) -> Iterator[Signals]:
    """Within the block the first Ctrl-C or SIGTERM is noted, for the work to end at its next step.

    Args:
        grace_s: seconds after which the block ends as it does at a second signal.
        what: is done before the block ends, as its user is told.

    Raises:
        Terminated: a second signal, or the work did not end in time.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    timers: list[threading.Timer] = []

    def note(number: int, frame: FrameType | None) -> None:
        if signals.asked is not None:
            raise Terminated(signals.asked)
        signals.asked = number
        timers.append(threading.Timer(grace_s, os.kill, (os.getpid(), number)))
        timers[0].daemon = True
        timers[0].start()
        say(f"asked to end: {what}, which may take {grace_s:.0f} s; a second signal ends at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    try:
        yield signals
    finally:
        for timer in timers:
            timer.cancel()
        end_on_signals()


def beside(work: Callable[[], T], poll: Callable[[], object]) -> T:
    """Do work in a thread, so that signals reach this one; poll until it is done.

    Raises:
        Exception: what the work raised.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        poll()
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result
