"""Bit-identical training for any number of workers: a fixed number of shards, summed in order.

Floating-point sums depend on their order, and kernels on the shapes that they see, so two workers
and four drift apart within an epoch, however right both are. Here the global batch is always cut
into `trainer.shards` shards. Every process runs its part of them as threads in lock step; each
thread is a whole `TrainingLoop` with its own replica, which sees `shards` workers. What they
exchange is put together in shard order. A shard computes the same numbers wherever it runs.

The price: a replica of the model per shard, one torch thread per shard, and an exchange per
BatchNorm layer in which every thread waits for all others.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.distributed import collectives
from pipelines.distributed.prefetch import mapped
from pipelines.errors import StaleBankError
from pipelines.runs.records import EpochLine, State
from pipelines.training.epoch import EpochStart
from pipelines.training.job import EpochSource, Job
from pipelines.training.loop import Report, TrainingLoop
from pipelines.training.progress import Progress
from pipelines.training.within_epoch import Notice, nothing
from reid_core.types import Batch, Modality

# What a shard meets because another one failed.
_WOKEN = threading.BrokenBarrierError, StaleBankError
Result = TypeVar("Result")
Batches = dict[Modality, Batch]


def train(
    job: Job,
    bank: EpochSource,
    batches: Callable[[EpochStart], Iterator[Batches]],
    report: Report,
    *,
    device: torch.device,
    state: State | None = None,
    readers: int = 1,
    notice: Notice = nothing,
) -> Progress:
    """What `TrainingLoop(...).run()` does; with `trainer.strict` in `trainer.shards` shards.

    Args:
        job, bank, batches, report, device, state, readers, notice: of this process, see
            `TrainingLoop`. `batches`, `report` and `notice` are called in the calling thread.
    """
    if not job.config.trainer.strict:
        return TrainingLoop(
            job, bank, batches, report, device=device, state=state, readers=readers, notice=notice
        ).run()
    workers, shards = collectives.world_size(), job.config.trainer.shards
    first, num_local = collectives.rank() * (shards // workers), shards // workers
    meeting = Meeting(num_local)

    def run(index: int) -> Progress:
        shard = Shard(meeting, index, rank=first + index, size=shards)
        torch.set_num_threads(1)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread
        with (
            collectives.joined(shard),
            # also on GPUs: a backward pass that waits must not hold the device's only thread
            torch.autograd.set_multithreading_enabled(False),
            meeting.left_together(bank),
        ):
            loop = TrainingLoop(
                job,
                bank,
                lambda start: meeting.deal(index, lambda: batches(start)),
                report if index == 0 else _say_nothing,
                device=device,
                state=copy.deepcopy(state),
                readers=max(1, readers // num_local),
                distribute=shard.distribute,
                notice=notice if index == 0 else nothing,
            )
            return loop.run()

    with ThreadPoolExecutor(max(1, num_local - 1), "shard") as pool:
        others = [pool.submit(run, index) for index in range(1, num_local)]
        try:
            return run(0)
        except _WOKEN as woken:
            errors = [error for other in others if (error := other.exception())]
            culprits = [error for error in errors if not isinstance(error, _WOKEN)]
            raise (culprits or [woken])[0] from woken


class Meeting:
    """Where the shards of one process meet; the way to those of the other processes.

    Args:
        num_local: shards of this process.
    """

    def __init__(self, num_local: int) -> None:
        self._brought: list[Tensor] = [torch.empty(0)] * num_local
        self._all: list[Tensor] = []
        self._result: Any = None
        self._exchange = threading.Barrier(num_local, action=self._collect)
        self._turn = threading.Barrier(num_local)

    def gather(self, index: int, x: Tensor) -> list[Tensor]:
        """Every shard's tensor, in shard order; equal shapes. Not to be changed."""
        self._brought[index] = x.detach().contiguous()
        self._exchange.wait()
        return self._all

    def once(self, index: int, work: Callable[[], Result]) -> Result:
        """One result for all shards of this process, computed by the first of them."""
        if index == 0:
            self._result = work()
        self._turn.wait()
        result: Result = self._result
        self._turn.wait()
        return result

    def deal(self, index: int, open_stream: Callable[[], Iterator[Batches]]) -> Iterator[Batches]:
        """One shard's part of each of this process's batches."""
        stream = self.once(index, open_stream)

        while (batch := self.once(index, lambda: next(stream, None))) is not None:
            yield {m: _part(whole, index, len(self._brought)) for m, whole in batch.items()}

    @contextmanager
    def left_together(self, bank: EpochSource | None = None) -> Iterator[None]:
        """A shard that fails wakes those that wait for it: here, and for its features in a bank."""
        try:
            yield
        except BaseException as error:
            self._exchange.abort()
            self._turn.abort()
            if bank is not None and not isinstance(error, _WOKEN):
                with suppress(Exception):  # in a bank that is gone nobody waits
                    bank.open()
            raise

    def _collect(self) -> None:
        """Run by whoever arrives last."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            self._all = list(self._brought)
            return
        own = torch.stack(self._brought)
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        self._all = [x for part in parts for x in part]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard as a worker, see `collectives.Group`.

    Attributes:
        meeting: of its process.
        index: among the shards of its process.
        rank, size: among all shards.
    """

    meeting: Meeting
    index: int
    rank: int
    size: int

    def all(self, x: Tensor) -> list[Tensor]:
        """Every shard's tensor, in shard order."""
        return self.meeting.gather(self.index, x)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all shards; the gradient of every shard's loss flows back to the owner."""
        rows: Tensor = _Gather.apply(x, self)
        return rows

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the shards, in shard order, without gradient."""
        return _in_order(self.all(x))

    def broadcast_int(self, value: int) -> int:
        """The value of rank 0."""

        def ask() -> int:
            box = [value]
            if dist.is_initialized():
                dist.broadcast_object_list(box, src=0)
            return box[0]

        return self.meeting.once(self.index, ask)

    def distribute(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Before each step, every replica's gradients become their mean in shard order."""

        def average(*_: object) -> None:
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            mean = _in_order(self.all(torch.cat([g.flatten() for g in grads]))) / self.size
            pieces = mean.split([g.numel() for g in grads])
            for grad, piece in zip(grads, pieces, strict=True):
                grad.copy_(piece.view_as(grad))

        optimizer.register_step_pre_hook(average)
        return module


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard) -> Tensor:
        ctx.shard, ctx.num_rows = shard, len(x)
        return torch.cat(shard.all(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = _in_order(ctx.shard.all(grads[0]))
        start = ctx.shard.rank * ctx.num_rows
        return total[start : start + ctx.num_rows].clone(), None


def _in_order(parts: list[Tensor]) -> Tensor:
    """Their sum, from the first to the last."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _part(whole: Batch, index: int, parts: int) -> Batch:
    """One of several equal parts; copies, so that memory is aligned alike everywhere."""
    part = whole.cut(collectives.shares(len(whole.rows), parts)[index])
    copied: Batch = mapped(part, Tensor.clone)
    return copied


def _say_nothing(line: EpochLine, state: State | None) -> None:
    """The first shard of a process speaks for all."""
