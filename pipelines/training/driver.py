"""Training on Ray: the memory actor, the worker group and its data streams, assembled.

The driver reads and checks the data, starts the memory bank as an actor, and runs `TrainingLoop`
in every worker of one TorchTrainer. Every worker streams its share of an epoch's plan through Ray
Data, decoded on its own node. Ray Train restores the last checkpoint after a failure and when the
same run directory is used again.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster import capacity, preflight
from pipelines.cluster.session import num_gpus, session
from pipelines.config import RunConfig
from pipelines.data import gate
from pipelines.data.inputs import Inputs, find_unreadable
from pipelines.data.prepare import Prepared, prepare
from pipelines.data.sample_list import recall, remember
from pipelines.distributed import collectives
from pipelines.errors import UserError
from pipelines.runs import checkpoint, recovery, runlog, tensorboard
from pipelines.runs.epoch_lines import follow
from pipelines.storage.files import replace_file
from pipelines.training import deterministic, stream
from pipelines.training.distributed_knn import (
    WORKER_SHARE,
    nearest_by_searchers,
    nearest_on_all_nodes,
    start_searchers,
)
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.job import Job
from pipelines.training.loop import train as train_alone
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.planner import Planner
from pipelines.training.progress import Progress
from pipelines.training.summary import finish
from reid_core.methods import METHODS
from reid_core.types import Modality

log = logging.getLogger(__name__)
_FAILURE = "failure.txt"
_CHECK_ROWS = 2000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def train(config: RunConfig, run_dir: Path, command: Sequence[str]) -> dict[str, Any]:
    """Train, or go on training, in a run directory.

    Args:
        config: the run's configuration.
        run_dir: where everything goes; a directory of the same configuration is continued.
        command: the command line, for the record.

    Returns:
        The summary, as written to summary.json.

    Raises:
        UserError: something the user can put right, found before or during training.
    """
    began = time.perf_counter()
    run_dir = run_dir.resolve()
    # What is wrong here costs no start of Ray and claims no run directory.
    gate.check(config, run_dir)
    with runlog.held(run_dir):
        runlog.claim(run_dir, config, command)
        with session(config):
            capacity.require(config)
            if len(ray.nodes()) > 1:
                preflight.require_shared(run_dir)
            begun = recall(run_dir)
            prepared = prepare(config, _find_broken_everywhere, begun=begun)
            if begun is None:
                remember(run_dir, prepared.train)
            started = time.perf_counter()
            with follow(run_dir, config):
                progress = _fit(config, prepared, run_dir)
    seconds = {"start": started - began, "train": time.perf_counter() - started}
    return finish(run_dir, config, prepared, progress, seconds)


def _fit(config: RunConfig, prepared: Prepared, run_dir: Path) -> Progress:
    (run_dir / _FAILURE).unlink(missing_ok=True)
    start_from = checkpoint.finished_stage(config)
    job = Job.of(config, prepared, run_dir)
    searchers = start_searchers() if job.needs_memory and _uses_gpu(config) else []
    bank = _bank(job, prepared, searchers)
    try:
        result = _trainer(job, bank, recovery.tidy(run_dir) or start_from).fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(_explain(error, run_dir)) from error
    finally:
        for actor in (bank, *searchers):
            ray.kill(actor)
    if (run_dir / _FAILURE).exists():
        raise UserError((run_dir / _FAILURE).read_text())
    assert result.checkpoint is not None
    state = checkpoint.load(Path(result.checkpoint.path))
    return Progress.from_state(state["progress"])


def _explain(error: ray.train.TrainingFailedError, run_dir: Path) -> str:
    """What a worker said to the user, or else everything that Ray says."""
    mark = f"{UserError.__name__}: "
    for failure in getattr(error, "worker_failures", {}).values():
        if mark in str(failure):
            return str(failure).rpartition(mark)[2].strip()
    return f"training failed: {error}\nthe logs are in {run_dir}"


def _uses_gpu(config: RunConfig) -> bool:
    """As the configuration says, or else whether the cluster has one."""
    use_gpu = config.trainer.use_gpu
    return num_gpus() > 0 if use_gpu is None else use_gpu


def _bank(job: Job, prepared: Prepared, searchers: Sequence[Any] = ()) -> Any:
    """The actor between the epochs: a memory bank, or a planner for a method without one."""
    config = job.config
    options = {
        "name": f"bank-{job.run_dir.name}-{time.time_ns()}",
        "max_concurrency": 2 * max(config.trainer.num_workers, config.trainer.shards) + 2,
        # Workers wait while it clusters: all cores are its own. Ray would give it one.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}},
        # It comes back empty; workers find that out by its token and reload one checkpoint.
        "max_restarts": -1,
        # Beside the driver, without which there is no run: nodes with GPUs may be taken away.
        "scheduling_strategy": NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    }
    if not job.needs_memory:
        return _BankActor.options(**options).remote(Planner, config, job.identities)
    inputs = METHODS[config.method].inputs
    return _BankActor.options(**options).remote(
        MemoryBank,
        config,
        prepared.pids(inputs),
        identities=job.identities,
        owners=prepared.train_inputs.owners,
        cameras=prepared.cameras(inputs),
        search=partial(nearest_by_searchers, searchers) if searchers else nearest_on_all_nodes,
    )


def _trainer(job: Job, bank: Any, start_from: Path | None) -> TorchTrainer:
    settings = job.config.trainer
    use_gpu = _uses_gpu(job.config)
    workers: Any = settings.num_workers
    if settings.min_workers is not None:
        workers = (settings.min_workers, settings.num_workers)
    return TorchTrainer(
        _work,
        train_loop_config={"job": job, "bank": bank, "start_from": start_from},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={
                "CPU": settings.cpus_per_worker,
                **({"GPU": WORKER_SHARE} if use_gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=job.run_dir.name,
            storage_path=str(job.run_dir.parent),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
        ),
    )


# In the workers ----------------------------------------------------------------------------------


def _work(settings: dict[str, Any]) -> None:
    """The training function of one worker."""
    job: Job = settings["job"]
    torch.set_num_threads(job.config.trainer.cpus_per_worker)
    run = deterministic.train if job.config.trainer.strict else train_alone
    share = stream.share_of_node(job.config)
    try:
        run(
            job,
            RemoteBank(settings["bank"]),
            partial(stream.batches, job, share, collectives.rank(), collectives.world_size()),
            partial(_report, job.run_dir),
            device=ray.train.torch.get_device(),
            state=_kept(settings["start_from"]),
            readers=share.num_tasks,
        )
    except BankRefusedError as error:
        # Every worker was refused alike; trying again would not change it.
        if collectives.rank() == 0:
            replace_file(job.run_dir / _FAILURE, str(error))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"cannot write an epoch's results ({error.strerror}): make room in {job.run_dir} and "
            f"{tempfile.gettempdir()}, then run the same command again; it goes on from the last "
            "checkpoint, which is untouched"
        ) from error


def _kept(start_from: Path | None) -> dict[str, Any] | None:
    """The state to go on from; `start_from` is used where Ray has none."""
    kept = ray.train.get_checkpoint()
    if kept is None:
        return None if start_from is None else checkpoint.load(start_from)
    with kept.as_directory() as folder:
        return checkpoint.load(Path(folder))


def _report(run_dir: Path, line: dict[str, Any], state: dict[str, Any] | None) -> None:
    if state is None:
        ray.train.report(line)
        return
    tensorboard.write(run_dir, line)
    with tempfile.TemporaryDirectory() as folder:
        info = {"stage": line["stage"], "epoch": line["epoch"], "written": time.time()}
        checkpoint.save(Path(folder), state, info)
        ray.train.report(line, checkpoint=Checkpoint.from_directory(folder))


class BankRefusedError(Exception):
    """The memory bank cannot make an epoch out of what it was given; same for every worker."""


@dataclass
class RemoteBank:
    """The actor between the epochs, called like the plain class."""

    handle: Any

    def open(self) -> int:
        """See `MemoryBank.open`."""
        return ray.get(self.handle.open.remote())

    def add_features(
        self, token: int, key: Key, modality: Modality, features: np.ndarray, rank: int, world: int
    ) -> None:
        """Hand features over by reference; returns at once."""
        shard = ray.put(features)
        self.handle.add_features.remote(token, key, modality, shard, rank, world)

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """See `MemoryBank.begin_epoch`."""
        try:
            (start,) = ray.get(self.handle.begin_epoch.remote(token, key, world))
            return ray.get(start)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise BankRefusedError(str(error.cause)) from error
            raise


class BankActor:
    """The actor between the epochs: a memory bank or a planner.

    What begins an epoch is stored once for all workers, not once for each.

    Args:
        kind: `MemoryBank` or `Planner`.
        args, kwargs: as it takes them.
    """

    def __init__(self, kind: type, *args: Any, **kwargs: Any) -> None:
        self._bank = kind(*args, **kwargs)
        self._stored: tuple[EpochStart | None, list[Any]] = None, []
        self._storing = threading.Lock()

    def open(self) -> int:
        """See `MemoryBank.open`."""
        return self._bank.open()

    def add_features(self, *share: Any) -> None:
        """See `MemoryBank.add_features`."""
        self._bank.add_features(*share)

    def begin_epoch(self, token: int, key: Key, world: int) -> list[Any]:
        """A list that holds the reference of what `MemoryBank.begin_epoch` returns."""
        start = self._bank.begin_epoch(token, key, world)
        with self._storing:
            if self._stored[0] is not start:
                self._stored = start, [ray.put(start)]
            return self._stored[1]


_BankActor: Any = ray.remote(num_cpus=0)(BankActor)


# Checks that are spread over the cluster ---------------------------------------------------------


def _find_broken_everywhere(inputs: Inputs, modality: Modality) -> list[tuple[int, str]]:
    """`find_unreadable` over all rows, as Ray tasks."""
    rows = np.arange(inputs.num_rows(modality))
    shared = ray.put(inputs)
    chunks = [rows[i : i + _CHECK_ROWS] for i in range(0, len(rows), _CHECK_ROWS)]
    found = ray.get([_find_unreadable.remote(shared, modality, chunk) for chunk in chunks])
    return [item for part in found for item in part]


_find_unreadable = ray.remote(find_unreadable)
