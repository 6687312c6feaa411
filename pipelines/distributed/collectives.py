"""The few collective operations of training, which also work without a process group.

Rows are gathered in (rank, position) order, the order of the global batch.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

T = TypeVar("T")


class Group(Protocol):
    """Workers that are threads, not processes: see `pipelines.training.deterministic`.

    Attributes:
        size: number of workers.
        rank: this one's number.
    """

    @property
    def size(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def gather(self, x: Tensor) -> Tensor:
        """`gather_rows_with_gradient`."""

    def sum(self, x: Tensor) -> Tensor:
        """`sum_over_workers`."""

    def broadcast_int(self, value: int) -> int:
        """`broadcast_int`."""


_thread = threading.local()


def _group() -> Group | None:
    return getattr(_thread, "group", None)


@contextmanager
def joined(group: Group) -> Iterator[None]:
    """This thread is a worker of `group` until the block ends, then what it was before."""
    before = _group()
    _thread.group = group
    try:
        yield
    finally:
        _thread.group = before


def are_threads() -> bool:
    """Whether the workers are threads of a `Group`."""
    return _group() is not None


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    if (group := _group()) is not None:
        return group.size
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number; 0 without a process group."""
    if (group := _group()) is not None:
        return group.rank
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(x: Tensor) -> Tensor:
    """(B, ...) of every worker -> (world B, ...), without gradient. Equal B everywhere."""
    if (group := _group()) is not None:
        return group.gather(x.detach())
    if world_size() == 1:
        return x.detach()
    x = x.detach().contiguous()
    whole = x.new_empty(world_size() * len(x), *x.shape[1:])
    dist.all_gather(list(whole.chunk(world_size())), x)
    return whole


def gather_rows_with_gradient(x: Tensor) -> Tensor:
    """Like `gather_rows`; the gradient of every worker's loss flows back to the owner."""
    if (group := _group()) is not None:
        return group.gather(x)
    if world_size() == 1:
        return x
    rows: Tensor = _GatherRows.apply(x)
    return rows


class _GatherRows(torch.autograd.Function):
    """`gather_rows` whose backward pass sums every worker's gradient of the rows of one."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return gather_rows(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return sum_over_workers(grad).chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all workers, with their gradient where there is one."""
    return gather_rows_with_gradient(x) if x.requires_grad else gather_rows(x)


def sum_over_workers(x: Tensor) -> Tensor:
    """Element-wise sum, without gradient."""
    if (group := _group()) is not None:
        return group.sum(x.detach())
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def gather_shares(x: Tensor, num_rows: int) -> Tensor:
    """Every worker's contiguous share (see `slice_of`) of rows -> all (num_rows, ...), in order."""
    if world_size() == 1:
        return x
    padded, parts = _padded_share(x, num_rows)
    gathered = gather_rows(padded).view(world_size(), *padded.shape)
    return torch.cat([gathered[r, : p.stop - p.start] for r, p in enumerate(parts)])


def gather_shares_on_first(x: Tensor, num_rows: int) -> Tensor | None:
    """`gather_shares` for rank 0 alone; None elsewhere, where nothing is received either."""
    if world_size() == 1 or are_threads():
        whole = gather_shares(x, num_rows)
        return whole if rank() == 0 else None
    padded, parts = _padded_share(x.detach(), num_rows)
    received = [torch.empty_like(padded) for _ in parts] if rank() == 0 else None
    dist.gather(padded, received, dst=0)
    if received is None:
        return None
    return torch.cat([rows[: p.stop - p.start] for rows, p in zip(received, parts, strict=True)])


def _padded_share(x: Tensor, num_rows: int) -> tuple[Tensor, list[slice]]:
    """A share at the length of the longest, and everybody's share."""
    parts = shares(num_rows, world_size())
    padded = x.new_zeros(parts[0].stop, *x.shape[1:])
    padded[: len(x)] = x
    return padded, parts


def broadcast_int(value: int) -> int:
    """Rank 0's value, on every worker."""
    if (group := _group()) is not None:
        return group.broadcast_int(value)
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def of_every_process(value: T) -> list[T]:
    """Values of all worker processes, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    result = [value] * dist.get_world_size()
    dist.all_gather_object(result, value)
    return result


def slice_of(num_rows: int) -> slice:
    """This worker's contiguous share of rows; shares differ by one at most."""
    return shares(num_rows, world_size())[rank()]


def shares(num_rows: int, parts: int) -> list[slice]:
    """`num_rows` cut into contiguous slices, the first ones one longer."""
    base, extra = divmod(num_rows, parts)
    starts = [i * base + min(i, extra) for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(starts)]
