"""The neighbour search of the clustering, spread over the nodes of a cluster.

It is the one part between the epochs that grows with the square of the rows. Its blocks give the
same neighbours wherever they run, so the number of nodes changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reid_core.knn.neighbours import Neighbours
from reid_core.knn.products import Features
from reid_core.knn.search import nearest, open_search

_WORTH_SPREADING = 20_000  # rows; below, sending the features costs more than it saves


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


def _blocks(
    features: Features, k: int, is_second: np.ndarray | None, blocks: Sequence[int]
) -> dict[int, Neighbours]:
    search = open_search(features, k, is_second=is_second)
    return {block: search.run(block) for block in blocks}


_search_blocks: Any = ray.remote(max_retries=3)(_blocks)
