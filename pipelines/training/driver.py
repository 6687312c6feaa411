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

from pipelines.cluster.capacity import share_of
from pipelines.cluster.session import session_of_run, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data.prepare import Prepared
from pipelines.data.unreadable import find_on_all_nodes
from pipelines.runs import ending, recovery
from pipelines.runs.records import Summary
from pipelines.training import calibrating, waiting
from pipelines.training.actor import BankActor, bank_on_ray
from pipelines.training.job import Job
from pipelines.training.progress import Progress
from pipelines.training.retries import Retries, for_users
from pipelines.training.run import Backend, complete
from pipelines.training.waiting import Awaited, Board
from pipelines.training.worker import work


def train(config: RunConfig, run_dir: Path, command: Sequence[str]) -> Summary:
    """Train, or go on training, in a run directory; see `pipelines.training.run.complete`."""
    return complete(
        config, run_dir, command, Backend(session_of_run, find_on_all_nodes, _fit, _calibrated)
    )


def _fit(
    config: RunConfig, prepared: Prepared, run_dir: Path, asked: Callable[[], bool]
) -> Progress:
    start_from = recovery.folder_for_ray(config, run_dir)
    job, board = Job.of(config, prepared, run_dir), Board()
    with (
        bank_on_ray(job, prepared, use_gpu=uses_gpu(config)) as bank,
        waiting.said(config, _share(config), board) as say,
    ):
        trainer = _trainer(job, bank, start_from, board)

        def poll() -> None:
            say()
            if asked():
                bank.ask_to_stop.remote()

        try:
            result = ending.beside(trainer.fit, poll)
        except ray.train.TrainingFailedError as error:
            raise for_users(error) from error
    # where nothing was reported, all was done already, or nothing yet
    newest = Path(result.checkpoint.path) if result.checkpoint else start_from
    return Progress.of_checkpoint(newest) if newest else Progress()


def _calibrated(config: RunConfig, run_dir: Path) -> str:
    return calibrating.on_the_cluster(config, run_dir, _share(config))


def _share(config: RunConfig) -> dict[str, float]:
    return share_of(config, uses_gpu(config))


def _trainer(
    job: Job, bank: ActorHandle[BankActor], start_from: Path | None, board: Board
) -> TorchTrainer:
    settings, share = job.config.trainer, _share(job.config)
    # Ray's annotations are those of an older Ray Train here
    retries: Any = Retries(job.run_dir, settings.max_failures, board.failed)
    awaited: Any = Awaited(job.config, share, board)
    workers: Any = settings.num_workers
    if settings.min_workers is not None:
        workers = (settings.min_workers, settings.num_workers)
    return TorchTrainer(
        work,
        train_loop_config={"job": job, "bank": bank, "start_from": start_from},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in share,
            resources_per_worker=share,
        ),
        run_config=ray.train.RunConfig(
            name=job.run_dir.name,
            storage_path=str(job.run_dir.parent),
            failure_config=FailureConfig(max_failures=-1),  # `Retries` counts
            callbacks=[retries, awaited],
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
        ),
    )
