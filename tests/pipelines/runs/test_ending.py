"""The first signal asks, the second ends; so does the end of the time that was given."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from pipelines.errors import Terminated
from pipelines.runs import ending


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(*numbers: int, wait_s: float = 0.01) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(wait_s)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with ending.gently() as signals:
        assert signals.asked is None
        send(number)
        assert signals.asked == number
    assert "this step is finished and kept" in capsys.readouterr().out


def test_a_second_signal_ends_at_once() -> None:
    with pytest.raises(Terminated) as ended, ending.gently():
        send(signal.SIGTERM, signal.SIGINT)
    assert ended.value.number == signal.SIGTERM


def test_work_that_does_not_end_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(Terminated), ending.gently(0.1):
        send(signal.SIGTERM, wait_s=5)
    assert time.monotonic() - began < 2


def test_after_the_block_a_signal_ends_as_before() -> None:
    with ending.gently():
        pass
    with pytest.raises(Terminated):
        send(signal.SIGTERM)


def test_work_beside_the_signals_returns_or_raises_as_it_would_here() -> None:
    polled = []
    assert ending.beside(lambda: time.sleep(0.5) or 7, lambda: polled.append(1)) == 7
    assert polled
    with pytest.raises(ZeroDivisionError):
        ending.beside(lambda: 1 / 0, lambda: None)
