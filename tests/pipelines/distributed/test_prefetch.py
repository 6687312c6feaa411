"""Batches ahead of their use: the same ones, in their order, on the CPU untouched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest
import torch
from torch import Tensor

from pipelines.distributed.prefetch import Ahead, Prefetch, mapped

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Part:
    rows: Tensor
    own_rows: slice
    more: dict[str, tuple[Tensor, None]]


def test_on_the_cpu_batches_pass_through_one_at_a_time() -> None:
    taken: list[int] = []

    def stream():
        for number in range(3):
            taken.append(number)
            yield {"x": torch.tensor([number])}

    given = stream()
    batches = Prefetch(given, CPU)
    first = next(batches)
    assert taken == [0]
    assert [int(first["x"]), *(int(batch["x"]) for batch in batches)] == [0, 1, 2]
    assert next(batches, None) is None


def test_a_thread_draws_ahead_in_order_and_no_further_than_it_may() -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for number in range(9):
            drawn.append(number)
            yield number

    items = Ahead(source())
    assert next(items) == 0
    wait_until(lambda: drawn == [0, 1, 2, 3])  # two wait, one is held by the thread
    time.sleep(0.05)
    assert drawn == [0, 1, 2, 3]
    assert list(items) == list(range(1, 9))
    assert next(items, None) is None


def test_what_the_source_raises_is_raised_in_its_turn_and_again() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("broken.jpg")

    items = Ahead(source())
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(items)


def test_a_thread_ends_when_nobody_waits_for_its_items() -> None:
    ended = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from count()
        finally:
            ended.set()

    items = Ahead(source())
    assert next(items) == 0
    del items
    assert ended.wait(5)


def wait_until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 5
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_every_tensor_of_a_nest_is_replaced_and_nothing_else() -> None:
    part = Part(torch.tensor([1]), slice(0, 2), {"a": (torch.tensor([2]), None)})
    doubled = mapped({"p": part}, lambda x: 2 * x)["p"]
    assert (int(doubled.rows), doubled.own_rows) == (2, slice(0, 2))
    assert int(doubled.more["a"][0]) == 4
    assert doubled.more["a"][1] is None
    assert int(part.rows) == 1
