"""What only a device can show; passed over where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipelines.distributed.batchnorm import GlobalBatchNorm
from pipelines.distributed.prefetch import Prefetch
from pipelines.runs import runlog
from pipelines.training import in_process, step
from reid_core.memory import ClusterMemory
from tests.pipelines import small_runs
from tests.pipelines.processes import free_port

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of one, over nccl."""
    address = f"tcp://127.0.0.1:{free_port()}"
    dist.init_process_group("nccl", init_method=address, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(12, 8, 6, 5), (12, 8)])
def test_the_kernels_of_the_global_batchnorm_are_torchs_own(
    alone: None, shape: tuple[int, ...]
) -> None:
    layer = (nn.BatchNorm2d(8) if len(shape) == 4 else nn.BatchNorm1d(8)).cuda()
    nn.init.uniform_(layer.weight)
    other = GlobalBatchNorm(8).cuda()
    other.load_state_dict(deepcopy(layer.state_dict()))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).cuda() + 3
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    # sums of the gradients that do not cancel, or rounding would be all that is left of them
    weights = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(1)).cuda()
    results = []
    for module in (layer, other):
        own = x.clone().requires_grad_()
        out = module(own)
        (out * weights).sum().backward()
        results.append((out, own.grad, module.weight.grad, module.bias.grad, *module.buffers()))
    for ours, theirs in zip(results[1], results[0], strict=True):
        # of a sum that nearly cancels, rounding is measured by what was summed
        within = 1e-4 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=within)


def test_prefetched_batches_are_the_given_ones() -> None:
    given = [{"a": torch.full((1000, 1000), float(n))} for n in range(8)]
    for n, batch in enumerate(Prefetch(iter(given), torch.device("cuda"))):
        assert batch["a"].is_cuda
        assert float(batch["a"].sum()) == n * 1e6
    assert n == 7


def test_a_bank_learns_on_the_device_what_it_learns_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = nn.functional.normalize(torch.randn(9, 32, generator=generator), dim=1)
    x = nn.functional.normalize(torch.randn(24, 32, generator=generator), dim=1)
    labels = torch.randint(-1, 9, (24,), generator=generator)
    here, there = (ClusterMemory(bank, momentum=0.1, temperature=1.0) for _ in range(2))
    here.update(x, labels)
    there.to("cuda").update(x.cuda(), labels.cuda(), most=24)
    torch.testing.assert_close(there.bank.cpu(), here.bank)


def train(trees: Path, run_dir: Path, method: str, *overrides: str) -> list[dict[str, float]]:
    """A small run on the device; returns the losses of its epochs."""
    config = small_runs.make_config(method, trees, *overrides)
    prepared = small_runs.prepare_data(config)
    in_process.fit(config, prepared, run_dir, device=torch.device("cuda"), readers=2)
    return [line["losses"] for line in runlog.read_metrics(run_dir)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["cclnet", "bmil", "csdn", "cpcl"])
def test_no_step_waits_for_the_device(
    method: str, precision: str, trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, steps = step.take, []

    def watched(*arguments: Any, **named: Any) -> None:
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(steps) > 1 else "default")
        try:
            take(*arguments, **named)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(step, "take", watched)
    train(trees, tmp_path, method, f"trainer.precision={precision}")
    assert len(steps) > 2


@pytest.mark.parametrize("method", ["cclnet", "bmil", "csdn", "cpcl"])
def test_replayed_graphs_take_the_same_steps(method: str, trees: Path, tmp_path: Path) -> None:
    plain, replayed = (
        train(trees, tmp_path / setting, method, f"trainer.compile={setting}")
        for setting in ("false", "true")
    )
    assert len(plain) == len(replayed)
    first = plain[0]  # later epochs see features that rounded otherwise
    assert replayed[0] == pytest.approx(first, rel=2e-3)
    for losses in replayed:
        assert all(math.isfinite(value) for value in losses.values())
