"""Faiss on a GPU in place of torch: what it proposes is proven, and a build that errs is refused.

Its kernels need a GPU; a module that answers like them on the CPU stands for them here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from torch import Tensor

from reid_core.knn import duplicates, faiss_screen, products, search
from reid_core.knn.faiss_screen import FaissScreen, faiss_for_gpus, open_screen
from tests.core.knn.test_search import assert_same
from tests.core.rows import unit

CPU = torch.device("cpu")


def stand_in(product: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a @ b.T) -> Any:
    class Resources:
        def setTempMemory(self, size: int) -> None:  # noqa: N802
            assert size > 0

    def knn_gpu(
        resources: Any, queries: Tensor, rows: Tensor, count: int, *, metric: int, device: int
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(resources, Resources)
        assert metric == faiss.METRIC_INNER_PRODUCT
        value, row = product(queries, rows).topk(count, dim=1)
        return value, row

    faiss = types.ModuleType("faiss")
    faiss.knn_gpu, faiss.METRIC_INNER_PRODUCT = knn_gpu, 0  # type: ignore[attr-defined]
    faiss.StandardGpuResources = Resources  # type: ignore[attr-defined]
    faiss.get_num_gpus = lambda: 1  # type: ignore[attr-defined]
    return faiss


@pytest.mark.parametrize("halves", [False, True])
def test_neighbors_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, halves: bool) -> None:
    for module in (products, duplicates):
        monkeypatch.setattr(module, "on_device", lambda rows: isinstance(rows, Tensor))
    screens: list[FaissScreen] = []

    def open_one(features: Tensor, count: int) -> FaissScreen:
        screens.append(FaissScreen(features, stand_in()))
        return screens[-1]

    monkeypatch.setattr(search, "open_screen", open_one)
    x = unit(1200, 24)
    x[1100:] = x[:100]
    x[50:60] = x[50] + np.float32(1e-7) * np.arange(10)[:, None]  # too close for float32
    x[50:60] /= np.linalg.norm(x[50:60], axis=1, keepdims=True)
    is_second = np.arange(1200) % 3 == 0 if halves else None
    assert_same(
        search.nearest(x, 20, is_second=is_second),
        search.nearest(torch.from_numpy(x), 20, is_second=is_second),
    )
    assert len(screens) == (2 if halves else 1), "one of each pool serves both of its searches"


@pytest.mark.slow
def test_a_build_that_is_right_is_used_and_one_that_errs_is_not() -> None:
    good = stand_in()
    assert faiss_screen._tried(good, CPU) == (good, "")

    def rounded(a: Tensor, b: Tensor) -> Tensor:
        return (a.bfloat16().float()) @ b.bfloat16().float().T

    assert "off by" in faiss_screen._tried(stand_in(rounded), CPU)[1]

    def forgetful(a: Tensor, b: Tensor) -> Tensor:
        product = a @ b.T
        product[:, 7] = -1
        return product

    assert faiss_screen._tried(stand_in(forgetful), CPU) == (None, "it misses neighbors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="benchmarks.gpu tries it")
def test_without_a_gpu_faiss_says_why_it_does_not_search() -> None:
    faiss_for_gpus.cache_clear()
    builds = {False: "this build of faiss is for CPUs", True: "faiss sees no GPU"}
    assert faiss_for_gpus() == (None, builds[hasattr(faiss, "StandardGpuResources")])
    faiss_for_gpus.cache_clear()


def test_torch_searches_what_lies_on_no_gpu() -> None:
    assert not isinstance(open_screen(torch.from_numpy(unit(9)), 4), FaissScreen)
