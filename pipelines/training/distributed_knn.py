"""The neighbor search of the clustering, spread over the nodes of a cluster.

It is the one part between the epochs that grows with the square of the rows. Its blocks give the
same neighbors wherever they run, so the number of nodes changes nothing but the time.

Where nodes have GPUs, a searcher on each of them holds a small share of one and serves blocks. The
other design, in which the workers gather all rows and search their own blocks inside the training
loop, would save the way to the searchers, but the methods ask for different searches (all rows,
distinct images, rows of both modalities by halves, one stage's rows) at moments that only the
memory bank knows, and every worker would have to take part in each of them in the same order. A
searcher is asked like a function: the bank and the contract of the methods stay as they are, and a
lost searcher is asked again.

Rows travel in pieces that are given back when every searcher has them, so they are held once by the
bank and once by each searcher, and never whole in the object store.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipelines.cluster.nodes import usable
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.products import Features, on_host
from reid_core.knn.search import nearest, open_search

SEARCHER_SHARE = 0.01  # of a GPU; what a worker leaves of one holds those of ten runs
PIECE_BYTES = 1 << 26
_WORTH_SPREADING = 20_000  # rows; below, sending the features costs more than it saves
_ON_THE_WAY = 2  # pieces in the object store at a time
_ATTEMPTS = 3
_starting = threading.Lock()  # two modalities may be searched at a time


class LostRowsError(Exception):
    """A searcher started anew and holds no rows."""


class SearchOnNodes:
    """`reid_core.knn.search.nearest`, shared by the nodes that have what searches.

    Args:
        use_gpu: whether GPUs search. They do it wherever there are some; CPUs of several nodes
            share the work where that pays.
    """

    def __init__(self, use_gpu: bool) -> None:
        self._use_gpu = use_gpu
        self._searchers: dict[
            str, ActorHandle[Searcher]
        ] = {}  # by node; they end with this process

    def __call__(
        self, features: Features, k: int, /, *, is_second: np.ndarray | None = None
    ) -> Neighbors:
        """See `reid_core.knn.search.nearest`."""
        here = ray.get_runtime_context().get_node_id()
        resource = "GPU" if self._use_gpu else "CPU"
        nodes = [node for node in usable() if node["Resources"].get(resource, 0) >= 1]
        takes_part = here in [node["NodeID"] for node in nodes]
        others = [node for node in nodes if node["NodeID"] != here]
        if len(features) < _WORTH_SPREADING:
            others = [] if takes_part else others[:1]
        if not others or (not takes_part and not self._use_gpu):
            return nearest(features, k, is_second=is_second)
        searchers = [self._on(node) for node in others]
        return nearest_by(searchers, features, k, is_second=is_second, takes_part=takes_part)

    def _on(self, node: dict[str, Any]) -> ActorHandle[Searcher]:
        with _starting:
            if node["NodeID"] not in self._searchers:
                # The train workers hold the CPUs and wait; what asked for one would wait for them.
                # An actor without would get one thread.
                cores = max(1, int(node["Resources"].get("CPU", 1)))
                handle = SearcherActor.options(
                    num_cpus=0,
                    num_gpus=SEARCHER_SHARE if self._use_gpu else 0,
                    runtime_env={"env_vars": {"OMP_NUM_THREADS": str(cores)}},
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True),
                ).remote()
                self._searchers[node["NodeID"]] = cast("ActorHandle[Searcher]", handle)
            return self._searchers[node["NodeID"]]


class Searcher:
    """Searches on the GPU of its node, on the CPU where it is given none."""

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._rows: dict[str, Tensor] = {}

    def begin(self, name: str, num_rows: int, width: int) -> None:
        """Make room for the rows of a search."""
        self._rows[name] = torch.empty((num_rows, width), device=self._device)

    def take(self, name: str, start: int, piece: np.ndarray) -> None:
        """Some of its rows, from row `start` on."""
        target = self._of(name)[start : start + len(piece)]
        if self._device.type == "cpu":
            target.numpy()[:] = piece
        else:
            target.copy_(torch.tensor(piece))  # Ray's arrays are read-only, torch warns of them

    def blocks(
        self, name: str, k: int, is_second: np.ndarray | None, blocks: Sequence[int]
    ) -> dict[int, Neighbors]:
        """Some blocks of the search over all rows."""
        search = open_search(self._of(name), k, is_second=is_second)
        return {block: search.run(block) for block in blocks}

    def end(self, name: str) -> None:
        """Forget the rows of a search."""
        self._rows.pop(name, None)

    def _of(self, name: str) -> Tensor:
        if name not in self._rows:
            raise LostRowsError(name)
        return self._rows[name]


SearcherActor = ray.remote(max_restarts=-1, max_task_retries=3)(Searcher)


def nearest_by(
    searchers: Sequence[ActorHandle[Searcher]],
    features: Features,
    k: int,
    /,
    *,
    is_second: np.ndarray | None = None,
    takes_part: bool = False,
) -> Neighbors:
    """`reid_core.knn.search.nearest`, its blocks shared by searchers.

    Args:
        searchers: handles of `Searcher`, at least one.
        features, k, is_second: as in `nearest`.
        takes_part: whether this process searches some of the blocks, where its features are.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _shared(searchers, features, k, is_second, takes_part)
        except ray.exceptions.RayError as error:
            is_lost = isinstance(error, ray.exceptions.RayActorError) or isinstance(
                getattr(error, "cause", None), LostRowsError
            )
            if not is_lost or attempt == _ATTEMPTS:
                raise
    raise AssertionError


def _shared(
    searchers: Sequence[ActorHandle[Searcher]],
    features: Features,
    k: int,
    is_second: np.ndarray | None,
    takes_part: bool,
) -> Neighbors:
    search = open_search(features, k, is_second=is_second)  # what is wrong with rows is said here
    name = uuid.uuid4().hex
    shares = np.array_split(np.arange(search.num_blocks), len(searchers) + takes_part)
    _send(searchers, features, name)
    try:
        asked: list[ray.ObjectRef[dict[int, Neighbors]]] = [
            searcher.blocks.remote(name, k, is_second, share.tolist())
            for searcher, share in zip(searchers, shares, strict=False)
            if len(share)
        ]
        of_blocks = {int(b): search.run(int(b)) for b in shares[-1]} if takes_part else {}
        for part in ray.get(asked):
            of_blocks |= part
    finally:
        for searcher in searchers:
            searcher.end.remote(name)
    return search.join([of_blocks[block] for block in range(search.num_blocks)])


def _send(searchers: Sequence[ActorHandle[Searcher]], features: Features, name: str) -> None:
    """Bring the rows to every searcher; the object store holds few of them at a time."""
    num_rows, width = features.shape
    step = max(1, PIECE_BYTES // (4 * width))
    waiting = deque([[s.begin.remote(name, num_rows, width) for s in searchers]])
    for start in range(0, num_rows, step):
        piece = ray.put(on_host(features[start : start + step]))
        waiting.append([s.take.remote(name, start, piece) for s in searchers])
        if len(waiting) > _ON_THE_WAY:
            ray.get(waiting.popleft())
    for calls in waiting:
        ray.get(calls)
