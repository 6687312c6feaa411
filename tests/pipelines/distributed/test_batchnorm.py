"""The global BatchNorm of one worker is torch's own: outputs, gradients, running statistics."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pipelines.distributed import batchnorm, collectives
from tests.waits import operations_of, waits_of

# a group of one thread, as strict training has them: it takes the formula, not the kernels
ALONE: Any = SimpleNamespace(size=1, rank=0, gather=lambda x: x, sum=lambda x: x)


def results(layer: nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * weights).sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, layer.weight.grad, layer.bias.grad, *layer.buffers()]


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 8, 5, 4), (12, 8)])
def test_it_is_torchs_own(shape: tuple[int, ...], dtype: torch.dtype, threads: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(8, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(8, generator=generator))
        layer.bias.copy_(torch.randn(8, generator=generator))
    x, weights = (torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))
    x = 3 + 2 * x
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    ours = batchnorm.convert(deepcopy(layer))
    expected = results(layer, x, weights)
    if threads:
        with collectives.joined(ALONE):
            obtained = results(ours, x, weights)
    else:
        obtained = results(ours, x, weights)
    for one, other in zip(obtained, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_statistics_stay_float32_and_the_input_is_all_that_is_kept() -> None:
    layer = batchnorm.convert(nn.BatchNorm2d(8))
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    saved: list[Tensor] = []

    def note(remaining: Tensor) -> Tensor:
        saved.append(remaining)
        return remaining

    half = x.bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda remaining: remaining):
        out = layer(half)
    out.sum().backward()
    assert out.dtype == half.grad.dtype == torch.bfloat16
    assert [remaining.dtype for remaining in saved if remaining.dim() == 4] == [torch.bfloat16]
    torch.testing.assert_close(out.float(), nn.BatchNorm2d(8)(x), atol=0.03, rtol=0.02)
    torch.testing.assert_close(layer.running_mean, 0.1 * half.float().mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("shape", [(6, 8, 5, 4), (12, 8)])
def test_several_workers_wait_for_nothing(
    shape: tuple[int, ...], threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers with the same rows: the statistics of those rows, as torch's own has them."""
    exchanges: list[int] = []

    def twice(x: Tensor) -> Tensor:
        exchanges.append(len(x))
        return torch.cat([x, x])

    def doubled(x: Tensor) -> Tensor:
        exchanges.append(len(x))
        return 2 * x

    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours = batchnorm.convert(deepcopy(layer))
    expected = results(layer, x, weights)
    pair: Any = SimpleNamespace(size=2, rank=0, gather=twice, sum=doubled)
    monkeypatch.setattr(collectives, "gather_rows", twice)
    monkeypatch.setattr(collectives, "sum_over_workers", doubled)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        if threads:
            with collectives.joined(pair):
                obtained = results(ours, x, weights)
        else:
            obtained = results(ours, x, weights)
    operations = operations_of(watched)
    assert operations["aten::add"]
    assert not waits_of(operations)
    assert len(exchanges) == (1 if threads else 2)  # the threads' way back is autograd's here
    for one, other in zip(obtained[:4], expected[:4], strict=True):  # no running statistics
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
