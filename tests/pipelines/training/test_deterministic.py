"""Strict training: shards as threads exchange as processes do, in one fixed order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.data import sound_settings
from pipelines.distributed import collectives, prefetch
from pipelines.distributed.batchnorm import GlobalBatchNorm
from pipelines.distributed.sharded_rows import ShardedRows
from pipelines.errors import UserError
from pipelines.training import deterministic
from pipelines.training.equipment import Equipment
from pipelines.training.job import EpochSource
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.opening import Opener
from pipelines.training.within_epoch import Pauses, nothing
from reid_core.methods import METHODS
from reid_core.types import Batch, Modality
from tests.pipelines import small_runs

SHARDS, ROWS = 4, 3


def together(work: Callable[[deterministic.Shard], Any]) -> list[Any]:
    """`work` in every shard of one process, in lock step."""
    meeting = deterministic.Meeting(SHARDS)

    def run(index: int) -> Any:
        shard = deterministic.Shard(meeting, index, rank=index, size=SHARDS)
        with collectives.joined(shard), meeting.left_together():
            return work(shard)

    with ThreadPoolExecutor(SHARDS) as pool:
        return list(pool.map(run, range(SHARDS)))


def rows_of(rank: int, width: int = 5) -> Tensor:
    return torch.randn(ROWS, width, generator=torch.Generator().manual_seed(rank)) + 1


def everything(width: int = 5) -> Tensor:
    return torch.cat([rows_of(rank, width) for rank in range(SHARDS)])


def test_a_shard_is_a_worker_in_its_own_thread_only() -> None:
    result = together(lambda shard: (collectives.rank(), collectives.world_size()))
    assert result == [(rank, SHARDS) for rank in range(SHARDS)]
    assert (collectives.rank(), collectives.world_size()) == (0, 1)


def test_batches_are_drawn_in_the_thread_of_their_shard() -> None:
    """As on a GPU, where they are drawn ahead: whom they are dealt to is known by its thread."""

    def work(shard: deterministic.Shard) -> list[slice]:
        return list(prefetch.ahead(collectives.slice_of(8 + n) for n in range(3)))

    results = together(work)
    assert results == [
        [collectives.shares(8 + n, SHARDS)[rank] for n in range(3)] for rank in range(SHARDS)
    ]
    assert isinstance(prefetch.ahead(iter(())), prefetch.Ahead)


def test_rows_sums_shares_and_numbers_arrive_in_order() -> None:
    def work(shard: deterministic.Shard) -> tuple[Tensor, Tensor, Tensor, int]:
        own = rows_of(shard.rank)
        share = torch.arange(7)[collectives.slice_of(7)]
        return (
            collectives.gather_rows(own),
            collectives.sum_over_workers(own),
            collectives.gather_shares(share, 7),
            collectives.broadcast_int(41 + shard.rank),
        )

    total = rows_of(0)
    for rank in range(1, SHARDS):
        total = total + rows_of(rank)
    for rows, summed, shares, number in together(work):
        assert torch.equal(rows, everything())
        assert torch.equal(summed, total)
        assert shares.tolist() == list(range(7))
        assert number == 41


@pytest.mark.parametrize("num_rows", [11, 3])
def test_rows_that_are_shared_out_are_read_as_if_all_were_here(num_rows: int) -> None:
    whole = torch.randn(num_rows, 6, generator=torch.Generator().manual_seed(0))
    asked = torch.tensor([2, 0, 1, 1, num_rows - 1])

    def work(shard: deterministic.Shard) -> Tensor:
        return ShardedRows(whole[collectives.slice_of(num_rows)], num_rows)[asked]

    for rows in [*together(work), ShardedRows(whole, num_rows)[asked]]:
        assert torch.equal(rows, whole[asked])


def test_a_gathered_row_hears_of_every_loss() -> None:
    weights = torch.arange(1.0, SHARDS + 1)

    def work(shard: deterministic.Shard) -> Tensor:
        own = rows_of(shard.rank).requires_grad_()
        (collectives.gather(own).square().sum() * weights[shard.rank]).backward()
        assert own.grad is not None
        return own.grad

    for rank, gradient in enumerate(together(work)):
        torch.testing.assert_close(gradient, 2 * rows_of(rank) * weights.sum())


def test_batch_normalization_is_that_of_all_rows() -> None:
    alone, x = nn.BatchNorm1d(5), everything().requires_grad_()
    expected = alone(x)
    expected.pow(3).sum().backward()

    def work(shard: deterministic.Shard) -> tuple[Tensor, Tensor, Tensor]:
        norm, own = GlobalBatchNorm(5), rows_of(shard.rank).requires_grad_()
        out = norm(own)
        out.pow(3).sum().backward()
        assert own.grad is not None
        assert norm.running_var is not None
        return out.detach(), own.grad, norm.running_var

    parts = together(work)
    torch.testing.assert_close(torch.cat([out for out, _, _ in parts]), expected.detach())
    torch.testing.assert_close(torch.cat([g for _, g, _ in parts]), x.grad)
    for _, _, variance in parts:
        torch.testing.assert_close(variance, alone.running_var)


def test_replicas_take_the_step_of_the_mean_gradient() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(5, 2)

    with torch.random.fork_rng():
        replicas, alone = [network() for _ in range(SHARDS)], network()

    def work(shard: deterministic.Shard) -> Tensor:
        module = replicas[shard.rank]
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        model = shard.distribute(module, optimizer)
        model(rows_of(shard.rank)).square().mean().backward()
        optimizer.step()
        return module.weight.detach()

    optimizer = torch.optim.SGD(alone.parameters(), lr=1.0)
    alone(everything()).square().mean().backward()
    optimizer.step()
    result = together(work)
    for weight in result:
        assert torch.equal(weight, result[0])
        torch.testing.assert_close(weight, alone.weight.detach())


def test_every_shard_is_dealt_its_rows_of_every_batch() -> None:
    whole = [
        {Modality.VISIBLE: Batch(torch.zeros(16, 1), torch.arange(8) + 8 * n, torch.zeros(8))}
        for n in range(3)
    ]
    opened = []

    def work(shard: deterministic.Shard) -> list[list[int]]:
        def open_stream() -> Any:
            opened.append(threading.get_ident())
            return iter(whole)

        dealt = shard.meeting.deal(shard.index, open_stream)
        return [batch[Modality.VISIBLE].rows.tolist() for batch in dealt]

    for rank, batches in enumerate(together(work)):
        assert batches == [[8 * n + 2 * rank, 8 * n + 2 * rank + 1] for n in range(3)]
    assert len(opened) == 1


def test_a_shard_that_fails_is_not_waited_for() -> None:
    def work(shard: deterministic.Shard) -> None:
        if shard.rank == 2:
            raise ValueError("row 3 is zero")
        shard.sum(torch.ones(1))

    with pytest.raises((ValueError, threading.BrokenBarrierError)):
        together(work)


def test_the_culprit_is_named_not_those_that_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stumbling:
        """A loop whose third shard fails while the others wait for it."""

        def __init__(self, *_: object, **__: object) -> None:
            self.rank = collectives.rank()

        def run(self) -> None:
            if self.rank == 2:
                raise ValueError("row 3 is zero")
            collectives.sum_over_workers(torch.ones(1))

    monkeypatch.setattr(deterministic, "TrainingLoop", Stumbling)
    trainer = SimpleNamespace(shards=SHARDS, strict=True)
    job: Any = SimpleNamespace(config=SimpleNamespace(trainer=trainer))
    bank: Any = None
    with pytest.raises(ValueError, match="row 3 is zero"):
        deterministic.train(job, bank, lambda _: iter(()), lambda *_: None, device=small_runs.CPU)


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_shard_that_fails_while_it_embeds_wakes_those_that_wait_for_its_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, culprit: int
) -> None:
    config = small_runs.make_config(
        "cclnet",
        tmp_path,
        "trainer.strict=true",
        "trainer.shards=2",
        "trainer.barrier_timeout_s=20",
    )
    job: Any = SimpleNamespace(config=config)
    nothing_known = {m: np.full(8, -1) for m in (Modality.VISIBLE, Modality.INFRARED)}
    bank = MemoryBank(config, nothing_known)
    waiting = threading.Event()

    class Embedding:
        """A loop whose one shard fails before it has handed its features over."""

        def __init__(self, job: object, bank: EpochSource, *_: object, **__: object) -> None:
            self.bank, self.rank = bank, collectives.rank()

        def run(self) -> None:
            token = collectives.broadcast_int(self.bank.open() if self.rank == 0 else 0)
            if self.rank == culprit:
                waiting.wait()
                raise UserError("17 training images cannot be read any more")
            waiting.set()
            self.bank.begin_epoch(token, ("prepare", 0), 2)

    monkeypatch.setattr(deterministic, "TrainingLoop", Embedding)
    began = time.monotonic()
    with pytest.raises(UserError, match="17 training images"):
        deterministic.train(job, bank, lambda _: iter(()), lambda *_: None, device=small_runs.CPU)
    assert time.monotonic() - began < 10


def test_first_values_follow_from_the_seed_alone(tmp_path: Path) -> None:
    """Also those that are drawn from torch's random state, as the matrices of low rank are."""

    def first_values(seed: int) -> list[Tensor]:
        torch.randn(seed + 1)  # what was drawn before does not matter
        few = ("model.lora_rank=2", f"seed={seed}")
        config = small_runs.make_config("cclnet-vit", tmp_path, *few)
        job: Any = SimpleNamespace(config=config, method=METHODS["cclnet"], identities=None)
        module = Opener(job, small_runs.CPU).open("prepare", {}).module
        return [x for name, x in module.named_parameters() if name.endswith(".a")]

    one, same, other = first_values(0), first_values(0), first_values(1)
    assert len(one) > 4
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_shard_leaves_alone_the_random_state_that_others_draw_first_values_from(
    tmp_path: Path,
) -> None:
    config = small_runs.make_config("cclnet", tmp_path)
    job: Any = SimpleNamespace(config=config, method=METHODS["cclnet"])
    none: Any = None
    equipment = Equipment(job, none, none, none, none, Pauses(nothing, 0.0))
    before = torch.random.get_rng_state()
    with collectives.joined(deterministic.Shard(deterministic.Meeting(1), 0, rank=0, size=1)):
        equipment.begin_epoch("align", 1)
        equipment.begin_step()
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng():
        equipment.begin_step()
        assert not torch.equal(torch.random.get_rng_state(), before)


def test_a_compiler_may_not_choose_the_order(tmp_path: Path) -> None:
    both = ("trainer.strict=true", "trainer.compile=true")
    with pytest.raises(UserError, match="switch one of them off"):
        sound_settings.check(small_runs.make_config("cpcl", tmp_path, *both))


@pytest.mark.parametrize(
    ("workers", "shards", "message"),
    [
        (3, 4, "trainer.shards=4 cannot be shared"),
        (1, 5, "= 16 cannot be shared by trainer.shards"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    tmp_path: Path, workers: int, shards: int, message: str
) -> None:
    config = small_runs.make_config(
        "cpcl",
        tmp_path,
        "trainer.strict=true",
        f"trainer.shards={shards}",
        f"trainer.num_workers={workers}",
    )
    with pytest.raises(UserError, match=message):
        sound_settings.check(config)
