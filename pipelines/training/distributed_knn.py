"""The neighbor search of the clustering, spread over the nodes of a cluster.

It is the one part between the epochs that grows with the square of the rows. Its blocks give the
same neighbors wherever they run, so the number of nodes changes nothing but the time.

Where nodes have GPUs, a searcher on each of them holds a small share of one and serves blocks. The
other design, in which the workers gather all rows and search their own blocks inside the training
loop, would save the way to the bank: a third of the bytes of two nodes, and no work (measured,
docs/scaling.md). But the methods ask for different searches (all rows, distinct images, rows of
both modalities by halves, one stage's rows) at moments that only the memory bank knows, and every
worker would have to take part in each of them in the same order. A searcher is asked like a
function: the bank and the contract of the methods stay as they are, and a lost searcher is asked
again.

Rows travel in pieces that are given back when every searcher has them, so they are held once by the
bank and once by each searcher, and never whole in the object store.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipelines.cluster.nodes import free, usable
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.products import Features, on_host
from reid_core.knn.search import nearest, open_search

log = logging.getLogger(__name__)
SEARCHER_SHARE = 0.01  # of a GPU: Ray puts those of many runs on one, beside whose worker they fit
PIECE_BYTES = 1 << 26
_WORTH_SPREADING = 20_000  # rows; below, sending the features costs more than it saves
_ON_THE_WAY = 2  # pieces in the object store at a time
_ATTEMPTS = 3
_READY_S = 30.0  # a process that imports torch takes ten; one without room waits for ever
_starting = threading.Lock()  # two modalities may be searched at a time


def has_share(unreserved: float) -> bool:
    """Whether a bank or a searcher finds room on what is left of a node's GPUs.

    Args:
        unreserved: of the node, in GPUs; 1 - 0.9 is a little less than 0.1.
    """
    return unreserved > SEARCHER_SHARE - 1e-6


class LostRowsError(Exception):
    """A searcher started anew and holds no rows."""


@dataclass
class _Started:
    """A searcher, and what it answers once it has room and runs."""

    handle: ActorHandle[Searcher]
    ready: ray.ObjectRef[None]


class SearchOnNodes:
    """`reid_core.knn.search.nearest`, shared by the nodes that have what searches.

    Args:
        use_gpu: whether GPUs search. They do it wherever there is room on some; CPUs of several
            nodes share the work where that pays.
        takes_part: whether this process, where the features are, searches as others do: on CPUs,
            or with a GPU of its own.
    """

    def __init__(self, use_gpu: bool, *, takes_part: bool) -> None:
        self._use_gpu, self._takes_part = use_gpu, takes_part
        self._searchers: dict[str, _Started] = {}  # by node; they end with this process
        self._left_out = set[str]()  # nodes that were told of

    def __call__(
        self, features: Features, k: int, /, *, is_second: np.ndarray | None = None
    ) -> Neighbors:
        """See `reid_core.knn.search.nearest`."""
        others = self._others()
        if len(features) < _WORTH_SPREADING:
            others = [] if self._takes_part else others
        searchers = self._ready(others)
        if len(features) < _WORTH_SPREADING:
            searchers = searchers[:1]
        if not searchers:
            return nearest(features, k, is_second=is_second)
        try:
            return nearest_by(
                searchers, features, k, is_second=is_second, takes_part=self._takes_part
            )
        except ray.exceptions.RayError as error:
            if not _is_lost(error):
                raise
            log.warning("the searchers of other nodes were lost; this node searches alone")
            return nearest(features, k, is_second=is_second)

    def _others(self) -> list[dict[str, Any]]:
        """The nodes beside this one that can search, or have a searcher already."""
        here = ray.get_runtime_context().get_node_id()
        resource = "GPU" if self._use_gpu else "CPU"
        unreserved = free("GPU") if self._use_gpu else {}
        result = []
        for node in usable():
            name = node["NodeID"]
            if name == here or node["Resources"].get(resource, 0) < 1:
                continue
            has_room = not self._use_gpu or has_share(unreserved.get(name, 0))
            if has_room or name in self._searchers:
                result.append(node)
            else:
                self._leave_out(node, "its GPUs are taken by other work")
        return result

    def _ready(self, nodes: Sequence[dict[str, Any]]) -> list[ActorHandle[Searcher]]:
        """The searchers of nodes, less those that have no room now or whose node has gone."""
        with _starting:
            new = [node for node in nodes if node["NodeID"] not in self._searchers]
            for node in new:
                self._searchers[node["NodeID"]] = self._start(node)
            begun = {node["NodeID"]: self._searchers[node["NodeID"]] for node in nodes}
            if begun:
                asked = [started.ready for started in begun.values()]
                ray.wait(asked, num_returns=len(asked), timeout=_READY_S if new else 0)
            result = []
            for node in nodes:
                started = begun[node["NodeID"]]
                try:
                    ray.get(started.ready, timeout=0)
                except ray.exceptions.GetTimeoutError:  # it stays, and is used once it has room
                    self._leave_out(node, f"no searcher has started within {_READY_S:g} s")
                except ray.exceptions.RayError as error:
                    del self._searchers[node["NodeID"]]
                    self._leave_out(node, f"its searcher was lost ({type(error).__name__})")
                else:
                    self._left_out.discard(node["NodeID"])
                    result.append(started.handle)
            return result

    def _start(self, node: dict[str, Any]) -> _Started:
        # The train workers hold the CPUs and wait; what asked for one would wait for them.
        # An actor without would get one thread.
        cores = max(1, int(node["Resources"].get("CPU", 1)))
        begun = SearcherActor.options(
            num_cpus=0,
            num_gpus=SEARCHER_SHARE if self._use_gpu else 0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(cores)}},
            # not on another one that has no room for it either
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        handle = cast("ActorHandle[Searcher]", begun)  # Ray's annotation says the class itself
        return _Started(handle, handle.ready.remote())

    def _leave_out(self, node: dict[str, Any], why: str) -> None:
        if node["NodeID"] not in self._left_out:
            self._left_out.add(node["NodeID"])
            log.warning("%s finds no neighbors: %s", node["NodeManagerAddress"], why)


class Searcher:
    """Searches on the GPU of its node, on the CPU where it is given none."""

    def __init__(self) -> None:
        given = ray.get_gpu_ids() and torch.cuda.is_available()  # others' are visible, too
        self._device = torch.device("cuda" if given else "cpu")
        self._rows: dict[str, Tensor] = {}

    def ready(self) -> None:
        """Returns once the searcher has room and runs."""

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
        """Forget the rows of a search, and leave the GPU to the worker beside."""
        self._rows.pop(name, None)
        torch.cuda.empty_cache()

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
            if not _is_lost(error) or attempt == _ATTEMPTS:
                raise
    raise AssertionError


def _is_lost(error: ray.exceptions.RayError) -> bool:
    lost = ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError
    return isinstance(error, lost) or isinstance(getattr(error, "cause", None), LostRowsError)


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
