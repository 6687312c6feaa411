"""The number of workers is not a hyper-parameter: two processes take the step of one.

All checks share one pair of gloo processes; each worker sends back its results, the tests compare
them with the same computation in this process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from pipelines.distributed import batchnorm, collectives
from pipelines.distributed.sharded_rows import ShardedRows
from pipelines.training.global_loss import Means, total_loss
from pipelines.training.step import compress_gradients, data_parallel
from reid_core import losses
from reid_core.memory import ClusterMemory
from reid_core.types import Term
from tests.pipelines.processes import free_port, join_group

pytestmark = pytest.mark.slow

WORLD, ROWS = 2, 12


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 8),
        nn.BatchNorm1d(8),
    )


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels with outliers on one worker only, text anchors."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(ROWS, 3, 8, 8, generator=generator) + 3
    labels = torch.tensor([-1] * (ROWS // 2) + [0, 1, 2, -1, 1, 0])
    return images, labels, torch.randn(3, 8, generator=generator)


def step(model: nn.Module, part: slice) -> dict[str, float]:
    """One backward pass of two terms, one of which leaves rows out."""
    images, labels, anchors = batch()
    means = Means()
    x = model(images[part])
    targets = torch.arange(ROWS)[part] % 3
    terms = {
        "all": Term(losses.image_to_text(x, targets, anchors), len(targets)),
        "some": Term(
            losses.image_to_text(x, labels[part], anchors), losses.count_valid(labels[part]), 0.5
        ),
    }
    total_loss(terms, means).backward()
    return means.read()


def contrast(texts: Tensor, part: slice) -> Tensor:
    """Supervised contrast of this worker's rows against everybody's."""
    labels = torch.arange(ROWS) % 4
    everyone = collectives.gather_rows_with_gradient(texts)
    return losses.supervised_contrast(
        batch()[0].flatten(1)[part, :8], everyone, labels[part], labels
    )


def updated_bank(gather: Callable[[Tensor], Tensor], part: slice) -> Tensor:
    """Prototypes after an update with the rows that `gather` makes of this worker's."""
    images, _, prototypes = batch()
    memory = ClusterMemory(
        nn.functional.normalize(prototypes, dim=1), momentum=0.5, temperature=0.1
    )
    rows = nn.functional.normalize(images.flatten(1)[:, :8], dim=1)
    memory.update(gather(rows[part]), gather(torch.arange(ROWS)[part] % 3))
    return memory.bank


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compressed(part: slice) -> dict[str, Tensor]:
    """Gradients that were exchanged in half the bytes."""
    model = batchnorm.convert(network())
    wrapped = data_parallel(model, torch.optim.SGD(model.parameters()))
    compress_gradients(wrapped)
    step(wrapped, part)
    return gradients(model)


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", FutureWarning)  # a deprecated call fills the workers' logs
    join_group(rank, WORLD, port, minutes=1)
    part = collectives.slice_of(ROWS)
    model = batchnorm.convert(network())
    wrapped = data_parallel(model, torch.optim.SGD(model.parameters()))
    result: dict[str, Any] = {"means": step(wrapped, part), "gradients": gradients(model)}
    result["buffers"] = dict(model.named_buffers())
    result["compressed"] = compressed(part)
    model.eval()
    result["eval"] = model(batch()[0])
    naive = DistributedDataParallel(network())
    step(naive, part)
    result["naive"] = gradients(naive.module)
    table = nn.Linear(8, 8, bias=False)
    nn.init.eye_(table.weight)
    rows = DistributedDataParallel(table)
    contrast(rows(batch()[0].flatten(1)[part, 8:16]), part).backward()
    result["contrast"] = table.weight.grad
    result["bank"] = updated_bank(collectives.gather_rows, part)
    result["local bank"] = updated_bank(lambda x: x, part)
    result["shares"] = collectives.gather_shares(torch.arange(7)[collectives.slice_of(7)], 7)
    result["shares of first"] = collectives.gather_shares_on_first(
        torch.arange(7)[collectives.slice_of(7)], 7
    )
    frozen = batch()[0].flatten(1)
    result["cached rows"] = ShardedRows(frozen[part], ROWS)[torch.tensor([7, 0, 7, 11])]
    result["token"] = collectives.broadcast_int(41 + rank)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    spawn(worker, args=(free_port(), str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> tuple[nn.Module, dict[str, float]]:
    model = network()
    return model, step(model, slice(0, ROWS))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def test_gradients_are_those_of_one_worker(workers: list, alone: tuple) -> None:
    expected = gradients(alone[0])
    # A bias in front of a BatchNorm has a gradient of zero up to rounding.
    shifted = {"0.bias", "4.bias"}
    for result in workers:
        for name in expected.keys() - shifted:
            assert relative(result["gradients"][name], expected[name]) < 1e-5, name


def test_compressed_gradients_differ_by_bfloat16s_rounding(workers: list, alone: tuple) -> None:
    expected = gradients(alone[0])
    for result in workers:
        for name in expected.keys() - {"0.bias", "4.bias"}:
            assert 0 < relative(result["compressed"][name], expected[name]) < 0.01, name
            assert torch.equal(result["compressed"][name], workers[0]["compressed"][name])


def test_means_count_every_valid_row_once(workers: list, alone: tuple) -> None:
    for result in workers:
        for name, mean in alone[1].items():
            assert result["means"][name] == pytest.approx(mean, rel=1e-5), name


def test_batchnorm_statistics_are_those_of_the_global_batch(workers: list, alone: tuple) -> None:
    expected = dict(alone[0].named_buffers())
    for result in workers:
        for name, buffer in expected.items():
            torch.testing.assert_close(result["buffers"][name], buffer, rtol=1e-5, atol=1e-6)


def test_evaluation_mode_is_unchanged(workers: list, alone: tuple) -> None:
    model = deepcopy(alone[0]).eval()
    for result in workers:
        torch.testing.assert_close(result["eval"], model(batch()[0]), rtol=1e-4, atol=1e-5)


def test_the_naive_way_differs(workers: list, alone: tuple) -> None:
    """Local statistics and local means give another gradient: the checks above can fail."""
    expected = gradients(alone[0])
    assert max(relative(workers[0]["naive"][name], expected[name]) for name in expected) > 0.05


def test_banks_learn_from_the_rows_of_all_workers(workers: list) -> None:
    """Bit for bit; banks that learned from a worker's own rows would drift apart."""
    expected = updated_bank(lambda x: x, slice(0, ROWS))
    for result in workers:
        assert torch.equal(result["bank"], expected)
        assert relative(result["local bank"], expected) > 0.05


def test_contrast_against_gathered_candidates(workers: list) -> None:
    table = nn.Linear(8, 8, bias=False)
    nn.init.eye_(table.weight)
    contrast(table(batch()[0].flatten(1)[:, 8:16]), slice(0, ROWS)).backward()
    for result in workers:
        assert relative(result["contrast"], table.weight.grad) < 1e-5


def test_only_rank_0_receives_what_is_measured(workers: list) -> None:
    assert workers[0]["shares of first"].tolist() == list(range(7))
    assert all(result["shares of first"] is None for result in workers[1:])


def test_unequal_shares_come_back_in_order(workers: list) -> None:
    for result in workers:
        assert result["shares"].tolist() == list(range(7))


def test_rows_that_are_shared_out_are_read_to_the_bit(workers: list) -> None:
    for result in workers:
        assert torch.equal(result["cached rows"], batch()[0].flatten(1)[[7, 0, 7, 11]])


def test_everybody_hears_rank_zero(workers: list) -> None:
    assert [result["token"] for result in workers] == [41, 41]
