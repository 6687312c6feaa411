"""Neighbors, Jaccard distances and DBSCAN of features on the device, against two rivals.

The rivals: faiss on the CPU cores of the same machine (on a part of the queries, times the rest),
and what a script would write, torch's matmul and topk in blocks. Our recall is that of sampled rows
against float64 products, a rival's counts the neighbors that are also ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.settings import Settings
from pipelines.distributed.precision import set_tf32
from reid_core import clustering
from reid_core.knn import search

SIZES = ((34_000, 2048), (100_000, 512), (1_000_000, 256))
TINY = ((2_000, 64),)
K1 = 30
_BLOCK = 1 << 28  # products of one block of the rival
_RIVAL_PRODUCTS = 1 << 37  # of the rival in all: every query at 100 k rows, an eighth at 1 M
_SAMPLE = 512  # rows that are multiplied in float64


def cases(settings: Settings) -> Iterator[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]:
    """One case per size."""
    clustering.cluster(world(settings, 600, 32).cpu())  # numba compiles, once per machine
    for num_rows, width in TINY if settings.tiny else SIZES:
        yield f"{num_rows} x {width}", partial(measure, settings, num_rows, width)


def world(settings: Settings, num_rows: int, width: int) -> Tensor:
    """Unit rows (N, D) on the device: four looks per identity, from clear to drowned in noise."""
    random = torch.Generator(settings.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=settings.device)

    looks = normal(num_rows // 40, width).repeat_interleave(4, dim=0)
    looks += normal(*looks.shape)
    which = torch.randint(len(looks), (num_rows,), generator=random, device=settings.device)
    noise = 1 + 5 * torch.rand(num_rows, 1, generator=random, device=settings.device)
    return functional.normalize(looks[which] + noise * normal(num_rows, width))


def measure(settings: Settings, num_rows: int, width: int) -> Iterator[dict[str, Any]]:
    """A turn between epochs first, then the rivals while there is time."""
    features = world(settings, num_rows, width)
    set_tf32(False)
    search.nearest(features[:4096], K1)
    settings.reset_memory()
    with settings.timed() as searched:
        result = search.nearest(features, K1)
    memory = settings.memory_mib()
    ours = torch.as_tensor(result.rows, dtype=torch.int64, device=settings.device)
    sample = torch.arange(0, num_rows, -(-num_rows // _SAMPLE), device=settings.device)
    recall = recall_of(ours[sample], nearest_in_double(features, sample))
    note = f"recall: {len(sample)} rows against float64"
    yield _line("neighbors, exact", searched(), memory, recall, note)
    with settings.timed() as spent:
        graph = clustering.jaccard_graph_of_neighbors(result, features, k1=K1, max_distance=0.6)
    jaccard = spent()
    with settings.timed() as spent:
        labels = clustering.dbscan(graph, eps=0.6, min_samples=4)
    yield {
        "what": "Jaccard and DBSCAN",
        "s": jaccard + spent(),
        "Jaccard s": jaccard,
        "DBSCAN s": spent(),
        "whole turn s": searched() + jaccard + spent(),
        "clusters": int(labels.max()) + 1,
        "outliers": float((labels < 0).mean()),
    }
    yield from plain_torch(settings, features, ours)
    yield from faiss_on_cpu(settings, features, ours)


def _line(
    what: str, seconds: float | None, memory: float | None, recall: float | None, note: str
) -> dict[str, Any]:
    return {"what": what, "s": seconds, "device MiB": memory, "recall": recall, "note": note}


def nearest_in_double(features: Tensor, sample: Tensor) -> Tensor:
    """Rows (S, k) of the largest float64 products of sampled rows, by multiplying all."""
    double = features.double()
    products = (double[part] @ double.T for part in sample.split(128))
    return torch.cat([part.topk(K1, dim=1).indices for part in products])


def plain_torch(settings: Settings, features: Tensor, ours: Tensor) -> Iterator[dict[str, Any]]:
    """matmul and topk in three precisions, of as many queries as take some seconds."""
    num = min(len(features), _RIVAL_PRODUCTS // len(features))
    for name in ("fp32", "tf32", "bf16"):
        set_tf32(name == "tf32")
        plain = features.bfloat16() if name == "bf16" else features
        settings.reset_memory()
        with settings.timed() as spent:
            rows = matmul_topk(plain[:num], plain)
        memory = settings.memory_mib()
        seconds, note = _of_all(spent(), num, len(features))
        what = f"rival matmul + topk, {name}"
        yield _line(what, seconds, memory, recall_of(rows, ours[:num]), note)
        del rows, plain
    set_tf32(False)


def matmul_topk(queries: Tensor, features: Tensor) -> Tensor:
    """Rows (Q, k) of the largest products, in blocks."""
    step = max(1, _BLOCK // len(features))
    blocks = [(part @ features.T).topk(K1, dim=1).indices for part in queries.split(step)]
    return torch.cat(blocks)


def recall_of(rows: Tensor, true: Tensor) -> float:
    """Share of the true neighbors that are among the given ones, on at most 20,000 rows."""
    step = -(-len(rows) // 20_000)
    rows, true = rows[::step], true[::step]
    return float((true[:, :, None] == rows[:, None, :]).any(dim=2).float().mean())


def _of_all(seconds: float, num: int, num_rows: int) -> tuple[float, str]:
    """Seconds of all queries, and how they are known."""
    queries = "all queries" if num == num_rows else f"extrapolated from {num} queries"
    return seconds * num_rows / num, f"{queries}; recall: against ours"


def faiss_on_cpu(settings: Settings, features: Tensor, ours: Tensor) -> Iterator[dict[str, Any]]:
    """faiss.knn with all cores, on queries that take a few seconds, times the rest."""
    try:
        import faiss
    except ImportError:
        yield _line("rival faiss-cpu", None, None, None, "not installed")
        return
    host = features.cpu().numpy()
    num, spent = 1024, 0.0
    while True:
        num = min(num, len(host))
        began = time.perf_counter()
        _, rows = faiss.knn(host[:num], host, K1, metric=faiss.METRIC_INNER_PRODUCT)
        spent = time.perf_counter() - began
        if spent > 1.5 or num == len(host) or settings.tiny:
            break
        num *= min(16, max(2, int(2 / max(spent, 1e-3))))
    seconds, note = _of_all(spent, num, len(host))
    recall = recall_of(torch.as_tensor(rows), ours[:num].cpu())
    yield _line("rival faiss-cpu", seconds, None, recall, note)
