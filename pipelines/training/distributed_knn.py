"""The neighbour search of the clustering, spread over the nodes of a cluster.

It is the one part between the epochs that grows with the square of the rows. Its blocks give the
same neighbours wherever they run, so the number of nodes changes nothing but the time.

Where nodes have GPUs, a searcher on each of them holds a small share of one and serves blocks. The
other design, in which the workers gather all rows and search their own blocks inside the training
loop, would save the way through shared memory, but the methods ask for different searches (all
rows, distinct images, rows of both modalities by halves, one stage's rows) at moments that only
the memory bank knows, and every worker would have to take part in each of them in the same order.
A searcher is asked like a function: the bank and the contract of the methods stay as they are, a
lost searcher is asked again, and each node holds one copy of the rows in its object store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reid_core.knn.neighbours import Neighbours
from reid_core.knn.products import Features, on_host
from reid_core.knn.search import nearest, nearest_on, open_search

_WORTH_SPREADING = 20_000  # rows; below, sending the features costs more than it saves
_SEARCHER_SHARE = 0.02  # of a GPU; what a training worker leaves of it holds a few


def nearest_on_all_nodes(
    features: Features, k: int, /, *, is_second: np.ndarray | None = None
) -> Neighbours:
    """`reid_core.knn.search.nearest`, shared by all nodes where that pays."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 or len(features) < _WORTH_SPREADING:
        return nearest(features, k, is_second=is_second)
    return nearest_in_tasks(features, k, nodes, is_second=is_second)


def nearest_in_tasks(
    features: Features, k: int, nodes: Sequence[str], *, is_second: np.ndarray | None = None
) -> Neighbours:
    """`nearest`, one task per entry of `nodes`.

    Args:
        features: (N, D) unit rows.
        k: neighbours per row, the row itself included.
        nodes: ids of the nodes that search, several times for several tasks on one.
        is_second: as in `nearest`.
    """
    search = open_search(features, k, is_second=is_second)
    cores = {node["NodeID"]: int(node["Resources"].get("CPU", 1)) for node in ray.nodes()}
    shared = ray.put(features)
    shares = [range(start, search.num_blocks, len(nodes)) for start in range(len(nodes))]
    tasks = [
        # The train workers hold the CPUs and wait; a task that asked for one would wait for them.
        # A task without would get one thread.
        _search_blocks.options(
            num_cpus=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(max(1, cores[node]))}},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
        ).remote(shared, k, is_second, share)
        for node, share in zip(nodes, shares, strict=True)
        if share
    ]
    found = {block: part for parts in ray.get(tasks) for block, part in parts.items()}
    return search.join([found[block] for block in range(search.num_blocks)])


class Searcher:
    """Searches on the GPU of its node, on the CPU where it is given none."""

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def nearest(self, features: np.ndarray, k: int, is_second: np.ndarray | None) -> Neighbours:
        """See `reid_core.knn.search.nearest`."""
        return nearest_on(self._device, features, k, is_second=is_second)

    def blocks(
        self, features: np.ndarray, k: int, is_second: np.ndarray | None, blocks: Sequence[int]
    ) -> dict[int, Neighbours]:
        """Some blocks of the search over all rows."""
        return _blocks(torch.as_tensor(features).to(self._device), k, is_second, blocks)


_SearcherActor: Any = ray.remote(max_restarts=-1, max_task_retries=3)(Searcher)


def start_searchers() -> list[Any]:
    """One `Searcher` for each node that has a GPU; it lives as long as its handle."""
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU", 0) >= 1]
    return [
        _SearcherActor.options(
            num_cpus=0,
            num_gpus=_SEARCHER_SHARE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True),
        ).remote()
        for node in nodes
    ]


def nearest_by_searchers(
    searchers: Sequence[Any],
    features: Features,
    k: int,
    /,
    *,
    is_second: np.ndarray | None = None,
) -> Neighbours:
    """`reid_core.knn.search.nearest`, its blocks shared by searchers.

    Args:
        searchers: handles of `Searcher`, at least one.
        features, k, is_second: as in `nearest`.
    """
    shared = ray.put(on_host(features))
    if len(searchers) == 1 or len(features) < _WORTH_SPREADING:
        neighbours: Neighbours = ray.get(searchers[0].nearest.remote(shared, k, is_second))
        return neighbours
    search = open_search(features, k, is_second=is_second)
    shares = np.array_split(np.arange(search.num_blocks), len(searchers))
    parts = ray.get(
        [
            searcher.blocks.remote(shared, k, is_second, share.tolist())
            for searcher, share in zip(searchers, shares, strict=True)
            if len(share)
        ]
    )
    of_blocks = {block: part for each in parts for block, part in each.items()}
    return search.join([of_blocks[block] for block in range(search.num_blocks)])


def _blocks(
    features: Features, k: int, is_second: np.ndarray | None, blocks: Sequence[int]
) -> dict[int, Neighbours]:
    search = open_search(features, k, is_second=is_second)
    return {block: search.run(block) for block in blocks}


_search_blocks: Any = ray.remote(max_retries=3)(_blocks)
