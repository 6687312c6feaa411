"""Neighbors, Jaccard distances and DBSCAN of features on the device, against two rivals.

The rivals: faiss on the CPU cores of the same machine (on a part of the queries, times the rest),
and what a script would write, torch's matmul and topk in blocks (its recall counts the neighbors
that are also ours).
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
    """Ours first, then the rivals while there is time."""
    features = world(settings, num_rows, width)
    set_tf32(False)
    search.nearest(features[:4096], K1)
    settings.reset_memory()
    with settings.timed() as searched:
        result = search.nearest(features, K1)
    memory = settings.memory_mib()
    yield {"what": "neighbors, exact", "s": searched(), "device MiB": memory, "recall": 1.0}
    ours = torch.as_tensor(result.rows, dtype=torch.int64, device=settings.device)
    for name in ("fp32", "tf32", "bf16"):
        set_tf32(name == "tf32")
        plain = features.bfloat16() if name == "bf16" else features
        settings.reset_memory()
        with settings.timed() as spent:
            rows = matmul_topk(plain)
        recall = recall_of(rows, ours)
        memory = settings.memory_mib()
        yield {
            "what": f"rival matmul + topk, {name}",
            "s": spent(),
            "device MiB": memory,
            "recall": recall,
        }
        del rows, plain
    set_tf32(False)
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
    yield from faiss_on_cpu(settings, features)


def matmul_topk(features: Tensor) -> Tensor:
    """Rows (N, k) of the largest products, in blocks."""
    step = max(1, _BLOCK // len(features))
    blocks = [(part @ features.T).topk(K1, dim=1).indices for part in features.split(step)]
    return torch.cat(blocks)


def recall_of(rows: Tensor, ours: Tensor) -> float:
    """Share of our neighbors that are among the given ones, on at most 20,000 rows."""
    step = -(-len(rows) // 20_000)
    rows, ours = rows[::step], ours[::step]
    return float((ours[:, :, None] == rows[:, None, :]).any(dim=2).float().mean())


def faiss_on_cpu(settings: Settings, features: Tensor) -> Iterator[dict[str, Any]]:
    """faiss.knn with all cores, on queries that take a few seconds, times the rest."""
    try:
        import faiss
    except ImportError:
        yield {"what": "rival faiss-cpu", "s": None, "note": "not installed"}
        return
    host = features.cpu().numpy()
    num, spent = 1024, 0.0
    while True:
        num = min(num, len(host))
        began = time.perf_counter()
        faiss.knn(host[:num], host, K1, metric=faiss.METRIC_INNER_PRODUCT)
        spent = time.perf_counter() - began
        if spent > 1.5 or num == len(host) or settings.tiny:
            break
        num *= min(16, max(2, int(2 / max(spent, 1e-3))))
    note = "all queries" if num == len(host) else f"extrapolated from {num} queries"
    yield {"what": "rival faiss-cpu", "s": spent * len(host) / num, "note": note}
