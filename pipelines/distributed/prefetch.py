"""Batches on the device one ahead: pinned memory, copied beside the step that computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Prefetch(Iterator[T]):
    """Batches of a host stream, on the device.

    On CUDA the next batch is copied on a stream of its own while the current one is used, from
    pinned memory, so that neither the host nor the kernels wait. On the CPU they pass through.

    Args:
        batches: on the host; tensors in dicts, tuples and dataclasses.
        device: where they are used.
    """

    def __init__(self, batches: Iterator[T], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: list[tuple[T, torch.Event]] = []
        self._begun = False

    def __next__(self) -> T:
        """The next batch; its copy is finished when a kernel that is started now reads it."""
        if self._stream is None:
            return next(self._batches)
        if not self._begun:
            self._begun = True
            self._fetch(self._stream)
        if not self._ahead:
            raise StopIteration
        batch, copied = self._ahead.pop()
        self._fetch(self._stream)
        here = torch.cuda.current_stream(self._device)
        here.wait_event(copied)

        def used_here(x: Tensor) -> Tensor:
            # or the next copy, on the stream that it came from, could take what a kernel reads
            x.record_stream(here)
            return x

        used: T = mapped(batch, used_here)
        return used

    def _fetch(self, stream: torch.cuda.Stream) -> None:
        """Start the copy of one more batch, if there is one."""
        for batch in self._batches:
            pinned = mapped(batch, Tensor.pin_memory)
            with torch.cuda.stream(stream):
                there = mapped(pinned, lambda x: x.to(self._device, non_blocking=True))
            self._ahead.append((there, stream.record_event()))
            return


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
