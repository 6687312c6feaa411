"""Training on Ray: the memory actor, the worker group and its data streams, assembled.

The driver reads and checks the data, starts the memory bank as an actor, and runs `TrainingLoop`
in every worker of one TorchTrainer. Every worker streams its share of an epoch's plan through Ray
Data, decoded on its own node. Ray Train restores the last checkpoint after a failure and when the
same run directory is used again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.cluster import capacity, preflight
from pipelines.cluster.session import num_gpus, session
from pipelines.config import RunConfig
from pipelines.data import gate
from pipelines.data.inputs import Inputs, find_unreadable
from pipelines.data.prepare import Prepared, prepare
from pipelines.data.sample_list import recall, remember
from pipelines.errors import RunFailedError, Terminated
from pipelines.runs import checkpoint, ending, recovery, runlog
from pipelines.runs.epoch_lines import follow
from pipelines.training.actor import start_bank
from pipelines.training.distributed_knn import (
    WORKER_SHARE,
    start_searchers,
)
from pipelines.training.job import Job
from pipelines.training.progress import Progress, is_over
from pipelines.training.retries import GaveUpError, Retries
from pipelines.training.summary import finish
from pipelines.training.worker import work
from reid_core.types import Modality

log = logging.getLogger(__name__)
_CHECK_ROWS = 2000


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
        RunFailedError: workers failed for another reason.
        Terminated: a signal asked for an end; the same call goes on from there.
    """
    began = time.perf_counter()
    run_dir = run_dir.resolve()
    # 1. What is wrong with settings, data or weights costs no start of Ray and no run directory.
    gate.check(config, run_dir)
    # 2. One process at a time; then the directory is this configuration's, from now on.
    with runlog.held(run_dir):
        runlog.claim(run_dir, config, command)
        # 3. Ray; before it reads an image, what it could never do is refused.
        with session(config):
            capacity.require(config)
            if len(ray.nodes()) > 1:
                preflight.require_shared(run_dir)
            # 4. The rows: those that the run began with, or else all that can be read, which are
            #    written down before training numbers them.
            begun = recall(run_dir)
            prepared = prepare(config, _find_broken_everywhere, begun=begun)
            if begun is None:
                remember(run_dir, prepared.train)
            # 5. Training, from the newest whole checkpoint on (`runs.recovery`).
            started = time.perf_counter()
            with follow(run_dir, config):
                progress = _fit(config, prepared, run_dir)
    # 6. What the finished run says of itself.
    seconds = {"start": started - began, "train": time.perf_counter() - started}
    return finish(run_dir, config, prepared, progress, seconds)


def _fit(config: RunConfig, prepared: Prepared, run_dir: Path) -> Progress:
    start_from = checkpoint.finished_stage(config)
    job = Job.of(config, prepared, run_dir)
    searchers = start_searchers() if job.needs_memory and _uses_gpu(config) else []
    bank = start_bank(job, prepared, searchers)
    trainer = _trainer(job, bank, recovery.tidy(run_dir) or start_from)
    try:
        with ending.gently() as signals:
            result = ending.beside(trainer.fit, lambda: signals.asked and bank.ask_to_stop.remote())
    except ray.train.TrainingFailedError as error:
        raise _for_users(error) from error
    finally:
        for actor in (bank, *searchers):
            ray.kill(actor)
    progress = Progress()
    if result.checkpoint is not None:
        state = checkpoint.load(Path(result.checkpoint.path))
        progress = Progress.from_state(state["progress"])
    if signals.asked and not is_over(config, progress):
        raise Terminated(signals.asked)
    return progress


def _for_users(error: ray.train.TrainingFailedError) -> Exception:
    """What a command raises in its place; worker failures went through `Retries`."""
    reason = getattr(error, "controller_failure", error)
    if isinstance(reason, GaveUpError):
        return reason.for_users()
    said = next(iter(str(reason).splitlines()), "")
    return RunFailedError(f"Ray Train ended the run with {type(reason).__name__}: {said}")


def _uses_gpu(config: RunConfig) -> bool:
    """As the configuration says, or else whether the cluster has one."""
    use_gpu = config.trainer.use_gpu
    return num_gpus() > 0 if use_gpu is None else use_gpu


def _trainer(job: Job, bank: Any, start_from: Path | None) -> TorchTrainer:
    settings = job.config.trainer
    use_gpu = _uses_gpu(job.config)
    retries: Any = Retries(job.run_dir, settings.max_failures)
    workers: Any = settings.num_workers
    if settings.min_workers is not None:
        workers = (settings.min_workers, settings.num_workers)
    return TorchTrainer(
        work,
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
            failure_config=FailureConfig(max_failures=-1),  # `Retries` counts
            callbacks=[retries],
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
        ),
    )


# Checks that are spread over the cluster ---------------------------------------------------------


def _find_broken_everywhere(inputs: Inputs, modality: Modality) -> list[tuple[int, str]]:
    """`find_unreadable` over all rows, as Ray tasks."""
    rows = np.arange(inputs.num_rows(modality))
    shared = ray.put(inputs)
    chunks = [rows[i : i + _CHECK_ROWS] for i in range(0, len(rows), _CHECK_ROWS)]
    found = ray.get([_find_unreadable.remote(shared, modality, chunk) for chunk in chunks])
    return [item for part in found for item in part]


_find_unreadable = ray.remote(find_unreadable)
