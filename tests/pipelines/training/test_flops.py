"""The operations of a step that is not taken are those that are counted while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from pipelines.config.trainer import TrainerConfig
from pipelines.distributed import collectives
from pipelines.runs import checkpoint
from pipelines.training import deterministic, flops, speed
from reid_core.types import Term
from tests.pipelines import small_runs
from tests.pipelines.processes import free_port, join_group

ONE_EPOCH = {
    "cclnet": [f"cclnet.{stage}.epochs=1" for stage in ("prepare", "prompts", "align")],
    "bmil": [f"bmil.{stage}.epochs=1" for stage in ("intra", "joint")],
    "csdn": [f"csdn.{stage}.epochs=1" for stage in ("prompts", "fusion", "images")],
    "cpcl": ["cpcl.train.epochs=2"],  # one warms up
}
Counts = list[tuple[str, int | None, int]]


@contextmanager
def counted_both_ways() -> Iterator[Counts]:
    """Per stage that is begun: its class, and both counts of its first step."""
    counts: Counts = []
    take_step = speed.Speed.step

    def step(self: speed.Speed, take: Callable[[], None], batch: object) -> None:
        if self._counted:
            take_step(self, take, batch)
            return
        before, random = checkpoint.content_hash(state_of(self._stage)), torch.get_rng_state()
        still = flops.without_running(self._stage, batch, self._settings)
        assert checkpoint.content_hash(state_of(self._stage)) == before
        assert torch.equal(torch.get_rng_state(), random)
        take_step(self, take, batch)
        assert self._flops is not None
        counts.append((type(self._stage).__name__, still, self._flops))

    speed.Speed.step = step  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        speed.Speed.step = take_step  # type: ignore[method-assign]


def state_of(stage: Any) -> dict[str, Any]:
    """What a step changes."""
    grads = [p.grad for p in stage.module.parameters()]
    assert grads == [None] * len(grads)
    return {"module": dict(stage.module.state_dict()), "epoch": stage.state_dict()}


def counts_of(method: str, root: Path, folder: Path, *overrides: str) -> Counts:
    """Of every stage of a small run."""
    overrides = *ONE_EPOCH[method.partition("-")[0]], *overrides
    run = small_runs.open_run(small_runs.make_config(method, root, *overrides), folder)
    with counted_both_ways() as counts:
        deterministic.train(run.job, run.bank, run.batches, lambda *_: None, device=small_runs.CPU)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("family", ["", "-vit"])
@pytest.mark.parametrize("method", ONE_EPOCH)
def test_a_step_that_is_not_taken_has_as_many(
    method: str, family: str, trees: Path, tmp_path: Path
) -> None:
    counts = counts_of(method + family, trees, tmp_path)
    assert len(counts) == len(ONE_EPOCH[method])
    for stage, still, running in counts:
        assert still == pytest.approx(running, rel=0.01), stage


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "trainer.gradient_accumulation=2",
        "trainer.activation_checkpointing=true",
        "trainer.precision=bf16",
        "cclnet.swap.when=step",  # asks the banks for pairs in every update
    ],
)
def test_as_many_whatever_the_trainer_is_told(setting: str, trees: Path, tmp_path: Path) -> None:
    for stage, still, running in counts_of("cclnet", trees, tmp_path, setting):
        assert still == pytest.approx(running, rel=0.01), stage


def worker(rank: int, port: int, root: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    join_group(rank, 2, port, minutes=5)
    result = {method: counts_of(method, root, folder / f"{method}-{rank}") for method in ONE_EPOCH}
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_one_of_two_workers_counts_without_the_other(trees: Path, tmp_path: Path) -> None:
    """Wrapped by DDP, with batch normalization over both, whose exchanges take no part."""
    spawn(worker, args=(free_port(), trees, tmp_path), nprocs=2)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        for method in ONE_EPOCH:
            assert len(result[method]) == len(ONE_EPOCH[method])
            for stage, still, running in result[method]:
                assert still == pytest.approx(running, rel=0.01), (rank, method, stage)


class Asking:
    """A stage whose loss depends on a number that is read."""

    def __init__(self) -> None:
        self.module = nn.Linear(3, 1)

    def terms(self, model: nn.Module, batch: torch.Tensor, gather: object) -> dict[str, Term]:
        out = model(batch).mean()
        return {"asked": Term(out * 2 if out.item() > 0 else out, len(batch))}


def test_a_step_that_asks_for_numbers_is_not_counted_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert flops.without_running(Asking(), torch.ones(2, 3), TrainerConfig()) is None
    assert "flops_per_step and mfu are not known: DataDependentOutputException" in caplog.text


def test_whoever_counts_among_threads_is_one_of_them_afterwards() -> None:
    outer, inner = flops._Echo(3), flops._Echo(2)
    with collectives.joined(outer):
        with collectives.joined(inner):
            assert collectives.world_size() == 2
        assert collectives.world_size() == 3
    assert not collectives.are_threads()
