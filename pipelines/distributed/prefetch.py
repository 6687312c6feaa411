"""Batches on the device before they are used: pinned and copied beside the step that computes."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Full, Queue
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipelines.distributed import collectives

T = TypeVar("T")
_WAITING = 2  # items drawn before they are asked for


class Prefetch(Iterator[T]):
    """Batches of a host stream, on the device.

    On CUDA a thread takes them from the stream, into pinned memory, and copies them on a stream of
    the device's own while earlier ones are used, so that neither the host nor the kernels wait. On
    the CPU they pass through.

    Args:
        batches: on the host; tensors in dicts, tuples and dataclasses.
        device: where they are used.
    """

    def __init__(self, batches: Iterator[T], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._copied = ahead(_copies(batches, device)) if device.type == "cuda" else None

    def __next__(self) -> T:
        """The next batch; its copy is finished when a kernel that is started now reads it."""
        if self._copied is None:
            return next(self._batches)
        batch, copied = next(self._copied)
        here = torch.cuda.current_stream(self._device)
        here.wait_event(copied)

        def used_here(x: Tensor) -> Tensor:
            # or the next copy, on the stream that it came from, could take what a kernel reads
            x.record_stream(here)
            return x

        used: T = mapped(batch, used_here)
        return used


def _copies(batches: Iterator[T], device: torch.device) -> Iterator[tuple[T, torch.Event]]:
    """Every batch with the event that says when its copy is there."""
    stream = torch.cuda.Stream(device)
    for batch in batches:
        pinned = mapped(batch, Tensor.pin_memory)
        with torch.cuda.stream(stream):
            there = mapped(pinned, lambda x: x.to(device, non_blocking=True))
        yield there, stream.record_event()


def ahead(source: Iterator[T]) -> Iterator[T]:
    """Items drawn by a thread of their own; as they come where workers are threads themselves.

    Those meet while they draw, each in its own name, and a thread has no name but its worker's.
    """
    return source if collectives.are_threads() else Ahead(source)


class Ahead(Iterator[T]):
    """Items that a thread draws before they are asked for.

    What the source raises is raised here, in its turn. The thread ends with the source, or soon
    after nobody holds this iterator any more.

    Args:
        source: drawn from in the thread alone.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._ready: Queue[T | _End] = Queue(_WAITING)
        dropped = threading.Event()
        weakref.finalize(self, dropped.set)
        arguments = (source, self._ready, dropped)
        threading.Thread(target=_draw, args=arguments, name="ahead", daemon=True).start()

    def __next__(self) -> T:
        """The next item."""
        item = self._ready.get()
        if not isinstance(item, _End):
            return item
        self._ready.put(item)  # whoever asks again hears the same
        raise StopIteration if item.reason is None else item.reason


@dataclasses.dataclass(frozen=True)
class _End:
    reason: BaseException | None


def _draw(source: Iterator[T], ready: Queue[T | _End], dropped: threading.Event) -> None:
    """Put every item where it is taken from, then what ended them. Holds no `Ahead`."""

    def put(item: T | _End) -> None:
        while not dropped.is_set():
            with suppress(Full):
                ready.put(item, timeout=0.2)
                return

    try:
        for item in source:
            put(item)
            del item
            if dropped.is_set():
                return
    except BaseException as error:
        put(_End(error))
    else:
        put(_End(None))


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of dicts, tuples and dataclasses with every tensor replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(value, function) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(
            tree, **{name: mapped(value, function) for name, value in vars(tree).items()}
        )
    return tree
