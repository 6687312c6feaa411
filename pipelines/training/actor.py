"""The actor between the epochs: a memory bank or a planner on Ray, and how workers call it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import ray
import torch
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.machine import cores
from pipelines.cluster.nodes import free
from pipelines.data.prepare import Prepared
from pipelines.errors import UserError, own_words_for_users
from pipelines.runs import warned
from pipelines.training.distributed_knn import PIECE_BYTES, SearchOnNodes
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.epoch_maker import EpochMaker, epoch_maker_of
from pipelines.training.job import Job
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.searcher_places import SEARCHER_SHARE, has_share
from reid_core.knn.products import Features, on_host
from reid_core.types import Modality

log = logging.getLogger(__name__)
_PIECES = 2  # of a share, that wait in the object store at a time


@contextmanager
def bank_on_ray(job: Job, prepared: Prepared, *, use_gpu: bool) -> Iterator[ActorHandle[BankActor]]:
    """The actor between the epochs, which lives as long as the block.

    Args:
        job, prepared: the work, and its data set.
        use_gpu: let the nodes' GPUs find the neighbors.
    """
    options, *made_by = _placed(job, prepared, use_gpu=use_gpu)
    # held by this block: Ray itself would let go of it, and could not start the actor again
    stored = ray.put(made_by)
    # Ray's annotation also allows for the class itself
    begun = _BankActor.options(**options).remote([stored], job.run_dir)
    bank = cast("ActorHandle[BankActor]", begun)
    try:
        yield bank
    finally:
        ray.kill(bank)  # and with it its searchers


def _placed(
    job: Job, prepared: Prepared, *, use_gpu: bool
) -> tuple[dict[str, object], Callable[[], EpochMaker], SearchOnNodes]:
    """Options of the actor, on the driver's node with all of its cores; what makes its bank; and
    what finds neighbors for it.

    Where GPUs are used and the node has room on one, the bank holds its features there.
    """
    trainer = job.config.trainer
    node = ray.get_runtime_context().get_node_id()
    options: dict[str, object] = {
        "name": f"bank-{job.run_dir.name}-{time.time_ns()}",
        "max_concurrency": 2 * max(trainer.num_workers, trainer.shards) + 4,
        # Workers wait while it clusters: all cores are its own. Ray would give it one.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(cores())}},
        # It comes back empty; workers find that out by its token and reload one checkpoint.
        "max_restarts": -1,
        # Beside the driver, without which there is no run: nodes with GPUs may be taken away.
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    on_gpu = job.method.reads_features and use_gpu and _has_room_on_a_gpu(node)
    if on_gpu:
        options["num_gpus"] = SEARCHER_SHARE
    search = SearchOnNodes(use_gpu, takes_part=on_gpu or not use_gpu)
    device = torch.device("cuda" if on_gpu else "cpu")
    return options, epoch_maker_of(job, prepared, search=search, device=device), search


def _has_room_on_a_gpu(node: str) -> bool:
    """Whether a node has a GPU that is not taken whole; says so where it has, and all are."""
    total = next((n["Resources"].get("GPU", 0) for n in ray.nodes() if n["NodeID"] == node), 0)
    has_room = has_share(free("GPU").get(node, 0))
    if total and not has_room:
        log.warning(
            "all GPUs of this node (%g) are taken by other work: its memory bank stays on the CPU",
            total,
        )
    return has_room


@dataclass
class RemoteBank:
    """The actor between the epochs, called like the plain class.

    Attributes:
        handle: of the actor.
        workers: by node id, the GPUs that the run's workers hold.
    """

    handle: ActorHandle[BankActor]
    workers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def open(self) -> int:
        """See `MemoryBank.open`."""
        token: ray.ObjectRef[int] = self.handle.open.remote(self.workers)
        return ray.get(token)

    def is_to_stop(self) -> bool:
        """Whether the driver was asked to end the run.

        An actor that is gone, or not there again, was not: it is missed where it is needed, with
        the next epoch's features, and the last epoch needs it no more. The driver asks again.
        """
        try:
            return bool(ray.get(self.handle.is_to_stop.remote()))
        except ray.exceptions.RayActorError as error:
            log.info("the memory bank does not answer: %s", error)
            return False

    def add_features(
        self, token: int, key: Key, modality: Modality, features: Features, rank: int, world: int
    ) -> None:
        """Hand a share over in pieces; returns before the last of them is dealt with.

        The bank copies a piece to its place and gives it back, so the object store holds few.
        """
        step = max(1, PIECE_BYTES // (4 * features.shape[1]))
        waiting: deque[ray.ObjectRef[None]] = deque()
        for start in range(0, max(1, len(features)), step):
            if len(waiting) == _PIECES:
                ray.get(waiting.popleft())
            piece = ray.put(on_host(features[start : start + step]))
            waiting.append(
                self.handle.add_features.remote(token, key, modality, piece, rank, world, start)
            )

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """See `MemoryBank.begin_epoch`.

        Raises:
            UserError: what the bank was given makes no epoch; the same for every worker.
        """
        try:
            stored: ray.ObjectRef[list[ray.ObjectRef[EpochStart]]]
            stored = self.handle.begin_epoch.remote(token, key, world)
            return ray.get(ray.get(stored)[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):  # without the actor's traceback in its words
                raise UserError(str(error.cause)) from error
            raise


class BankActor:
    """The actor between the epochs: a memory bank or a planner.

    What begins an epoch is stored once for all workers, not once for each.

    Args:
        made_by: holds what makes a `MemoryBank` or a `Planner`, once, and its search.
        run_dir: of the run, where what it warns of is kept.
    """

    def __init__(
        self,
        made_by: Sequence[ray.ObjectRef[tuple[Callable[[], EpochMaker], SearchOnNodes]]],
        run_dir: Path,
    ) -> None:
        warned.keep(run_dir)
        make, self._search = ray.get(made_by[0])  # the one that the bank searches with
        self._bank = make()
        self._stored: tuple[EpochStart | None, list[ray.ObjectRef[EpochStart]]] = None, []
        self._storing = threading.Lock()
        self._stop = False

    def ask_to_stop(self) -> None:
        """Let the workers know, when they ask, that the run is to end."""
        self._stop = True

    def is_to_stop(self) -> bool:
        """Whether it is."""
        return self._stop

    def open(self, workers: Mapping[str, Sequence[str]]) -> int:
        """See `MemoryBank.open`; for these workers, whose GPUs search while they wait."""
        self._search.beside(workers)
        return self._bank.open()

    def add_features(
        self,
        token: int,
        key: Key,
        modality: Modality,
        piece: Features,
        rank: int,
        world: int,
        start: int,
    ) -> None:
        """See `MemoryBank.add_features`."""
        assert isinstance(self._bank, MemoryBank)  # a planner is given no features
        self._bank.add_features(token, key, modality, piece, rank, world, start)

    def begin_epoch(self, token: int, key: Key, world: int) -> list[ray.ObjectRef[EpochStart]]:
        """A list that holds the reference of what `MemoryBank.begin_epoch` returns."""
        with own_words_for_users():
            start = self._bank.begin_epoch(token, key, world)
        with self._storing:
            if self._stored[0] is not start:
                self._stored = start, [ray.put(start)]
                torch.cuda.empty_cache()  # a GPU is the worker's again until the epoch ends
            return self._stored[1]


_BankActor = ray.remote(num_cpus=0)(BankActor)
