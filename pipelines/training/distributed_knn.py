"""The neighbor search of the clustering, spread over the GPUs or the nodes of a cluster.

It is the one part between the epochs that grows with the square of the rows. Its blocks give the
same neighbors wherever they run, so the number of searchers changes nothing but the time.

Where GPUs search, each that a worker of the run holds has a searcher, which serves blocks while the
worker waits (`searcher_places`). The other design, in which the workers gather all rows and search
their own blocks inside the training loop, would save the way to the bank: a third of the bytes of
two nodes, and no work (measured, docs/scaling.md). But the methods ask for different searches (all
rows, distinct images, rows of both modalities by halves, one stage's rows) at moments that only the
memory bank knows, and every worker would have to take part in each of them in the same order. A
searcher is asked like a function: the bank and the contract of the methods stay as they are, and a
lost searcher is asked again.

Rows travel in pieces that are given back when every searcher has them, so they are held once by the
bank and once by each searcher, and never whole in the object store.
"""

from __future__ import annotations

import logging
import sys
import threading
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipelines.cluster.nodes import free, usable
from pipelines.errors import UserError
from pipelines.training import searcher_places
from pipelines.training.searcher_places import SEARCHER_SHARE, Place
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.products import Features, on_host
from reid_core.knn.search import nearest, open_search

log = logging.getLogger(__name__)
PIECE_BYTES = 1 << 26
_WORTH_SPREADING = 20_000  # rows; below, sending the features costs more than it saves
_WORTH_GPUS = 200_000  # one GPU has searched fewer by the time that others have them
_ON_THE_WAY = 2  # pieces in the object store at a time
_ATTEMPTS = 3
_READY_S = 25.0  # a process that imports torch takes ten; one without room waits for ever
_READY_EACH_S = 5.0  # that many start at a time
_starting = threading.Lock()  # two modalities may be searched at a time


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
        self._workers: Mapping[str, Sequence[str]] = {}
        self._searchers: dict[Place, _Started] = {}  # they end with this process
        self._left_out = set[Place]()  # that were told of
        self._too_many = sys.maxsize  # rows, for a GPU beside its worker

    def beside(self, workers: Mapping[str, Sequence[str]]) -> None:
        """Search on the GPUs of these workers from now on, and no more on those of earlier ones.

        Args:
            workers: by node id, the GPUs that a run's workers hold there.
        """
        with _starting:
            self._workers = workers
            for place in list(self._searchers):
                reserved = workers.get(place.node, ())
                stale = bool(reserved) if place.gpu is None else place.gpu not in reserved
                if stale:
                    ray.kill(self._searchers.pop(place).handle)

    def __call__(
        self, features: Features, k: int, /, *, is_second: np.ndarray | None = None
    ) -> Neighbors:
        """See `reid_core.knn.search.nearest`."""
        workers = self._workers
        if searchers := self._asked(len(features)):
            try:
                return nearest_by(
                    searchers, features, k, is_second=is_second, takes_part=self._takes_part
                )
            except ray.exceptions.RayError as error:
                if workers is not self._workers:  # nobody waits for this search any more
                    raise
                if _is_full(error):
                    self._no_room_for(features)
                elif _is_lost(error):
                    log.warning("the searchers were lost; the memory bank searches alone")
                else:
                    raise
        # outside of `except`, which would hold what the shared search has on this GPU
        return nearest(features, k, is_second=is_second)

    def _no_room_for(self, features: Features) -> None:
        """Ask for no search of so many rows again.

        Raises:
            UserError: this process has no GPU of its own to search them on.
        """
        num_rows, width = features.shape
        said = (
            f"a GPU has no room beside its worker for a search among {num_rows:,} rows, "
            f"{6 * num_rows * width / 2**30:.1f} GiB"
        )
        if not self._takes_part:
            raise UserError(
                f"{said}: leave the workers less of it (trainer.precision=bf16, a smaller batch, "
                "more workers), or leave the memory bank a GPU of the driver's node"
            )
        log.warning("%s: the memory bank searches alone from now on", said)
        self._too_many = num_rows

    def _asked(self, num_rows: int) -> list[ActorHandle[Searcher]]:
        """Searchers for so many rows: all that are worth sending them to."""
        if num_rows >= self._too_many:
            return []
        if num_rows >= (_WORTH_GPUS if self._use_gpu else _WORTH_SPREADING):
            return self._ready(self._places())
        if self._takes_part:
            return []
        each = (self._ready([place]) for place in self._places())
        return next((searchers for searchers in each if searchers), [])

    def _places(self) -> list[Place]:
        """Where there can be a searcher beside this process, or is one already."""
        context = ray.get_runtime_context()
        here = context.get_node_id()
        if not self._use_gpu:
            return searcher_places.on_cpus(usable(), here)
        own = (here, *context.get_accelerator_ids().get("GPU", ())[:1])
        result, unreserved = [], free("GPU")
        for place in searcher_places.on_gpus(usable(), own, self._workers):
            has_room = place.gpu or searcher_places.has_share(unreserved.get(place.node, 0))
            if has_room or place in self._searchers:
                result.append(place)
            else:
                self._leave_out(place, "its GPUs are taken by other work")
        return result

    def _ready(self, places: Sequence[Place]) -> list[ActorHandle[Searcher]]:
        """The searchers of places, less those that have no room now or whose node has gone."""
        with _starting:
            new = [place for place in places if place not in self._searchers]
            for place in new:
                self._searchers[place] = self._start(place)
            begun = {place: self._searchers[place] for place in places}
            if begun:
                asked = [started.ready for started in begun.values()]
                patience = _READY_S + _READY_EACH_S * len(new)
                ray.wait(asked, num_returns=len(asked), timeout=patience if new else 0)
            result = []
            for place, started in begun.items():
                try:
                    ray.get(started.ready, timeout=0)
                except ray.exceptions.GetTimeoutError:  # it stays, and is used once it has room
                    self._leave_out(place, f"no searcher has started within {patience:g} s")
                except ray.exceptions.RayError as error:
                    del self._searchers[place]
                    self._leave_out(place, f"its searcher was lost ({type(error).__name__})")
                else:
                    self._left_out.discard(place)
                    result.append(started.handle)
            return result

    def _start(self, place: Place) -> _Started:
        # The train workers hold the CPUs and wait; what asked for one would wait for them.
        # An actor without would get one thread.
        environment = {"OMP_NUM_THREADS": str(place.cores)}
        if place.gpu is not None:  # a worker of this run has reserved it
            environment |= searcher_places.seeing(place.gpu)
        begun = SearcherActor.options(
            num_cpus=0,
            num_gpus=SEARCHER_SHARE if self._use_gpu and place.gpu is None else 0,
            runtime_env={"env_vars": environment},
            # not on another one that has no room for it either
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        ).remote(self._use_gpu)
        handle = cast("ActorHandle[Searcher]", begun)  # Ray's annotation says the class itself
        return _Started(handle, handle.ready.remote())

    def _leave_out(self, place: Place, why: str) -> None:
        if place not in self._left_out:
            self._left_out.add(place)
            log.warning("%s finds no neighbors: %s", place, why)


class Searcher:
    """Searches some blocks of a search.

    Args:
        on_gpu: on the GPU that it sees; else, and where it sees none, on the CPU.
    """

    def __init__(self, on_gpu: bool = False) -> None:
        self._device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
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


def _is_full(error: ray.exceptions.RayError) -> bool:
    """Whether a GPU has no room: for rows, or for a process at all, which torch says otherwise."""
    cause = getattr(error, "cause", None)
    full = isinstance(cause, torch.AcceleratorError) and "out of memory" in str(cause)
    return full or isinstance(cause, torch.OutOfMemoryError)


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
    try:
        _send(searchers, features, name)
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
