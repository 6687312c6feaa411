"""Training on Ray: the memory actor, the worker group and its data streams, assembled.

The driver reads and checks the data, starts the memory bank as an actor, and runs `TrainingLoop`
in every worker of one TorchTrainer. Every worker streams its share of an epoch's plan through Ray
Data, decoded on its own node. Ray Train restores the last checkpoint after a failure and when the
same run directory is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.actor import ActorHandle
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.cluster.session import session_of_run, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data.prepare import Prepared
from pipelines.data.unreadable import find_on_all_nodes
from pipelines.runs import ending, recovery
from pipelines.runs.records import Summary
from pipelines.training import calibrating
from pipelines.training.actor import BankActor, bank_on_ray
from pipelines.training.job import Job
from pipelines.training.progress import Progress
from pipelines.training.retries import Retries, for_users
from pipelines.training.run import Backend, complete
from pipelines.training.worker import GPU_SHARE, work


def train(config: RunConfig, run_dir: Path, command: Sequence[str]) -> Summary:
    """Train, or go on training, in a run directory; see `pipelines.training.run.complete`."""
    return complete(
        config, run_dir, command, Backend(session_of_run, find_on_all_nodes, _fit, _calibrated)
    )


def _fit(
    config: RunConfig, prepared: Prepared, run_dir: Path, asked: Callable[[], bool]
) -> Progress:
    start_from = recovery.folder_for_ray(config, run_dir)
    job = Job.of(config, prepared, run_dir)
    with bank_on_ray(job, prepared, use_gpu=uses_gpu(config)) as bank:
        trainer = _trainer(job, bank, start_from)
        try:
            result = ending.beside(trainer.fit, lambda: asked() and bank.ask_to_stop.remote())
        except ray.train.TrainingFailedError as error:
            raise for_users(error) from error
    # where nothing was reported, all was done already, or nothing yet
    newest = Path(result.checkpoint.path) if result.checkpoint else start_from
    return Progress.of_checkpoint(newest) if newest else Progress()


def _calibrated(config: RunConfig, run_dir: Path) -> str:
    return calibrating.on_the_cluster(config, run_dir, _share(config))


def _share(config: RunConfig) -> dict[str, float]:
    """What one worker reserves."""
    share: dict[str, float] = {"CPU": config.trainer.cpus_per_worker}
    return share | {"GPU": GPU_SHARE} if uses_gpu(config) else share


def _trainer(job: Job, bank: ActorHandle[BankActor], start_from: Path | None) -> TorchTrainer:
    settings = job.config.trainer
    # Ray's annotations are those of an older Ray Train here
    retries: Any = Retries(job.run_dir, settings.max_failures)
    workers: Any = settings.num_workers
    if settings.min_workers is not None:
        workers = (settings.min_workers, settings.num_workers)
    return TorchTrainer(
        work,
        train_loop_config={"job": job, "bank": bank, "start_from": start_from},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=uses_gpu(job.config),
            resources_per_worker=_share(job.config),
        ),
        run_config=ray.train.RunConfig(
            name=job.run_dir.name,
            storage_path=str(job.run_dir.parent),
            failure_config=FailureConfig(max_failures=-1),  # `Retries` counts
            callbacks=[retries],
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
        ),
    )
