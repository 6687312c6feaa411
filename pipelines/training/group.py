"""The group of workers that Ray Train runs for a driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.actor import ActorHandle
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.runs import ending
from pipelines.training import waiting
from pipelines.training.actor import BankActor
from pipelines.training.job import Job
from pipelines.training.retries import Retries, for_users
from pipelines.training.waiting import Awaited, Board
from pipelines.training.worker import work


def fit(
    job: Job,
    bank: ActorHandle[BankActor],
    start_from: Path | None,
    share: Mapping[str, float],
    asked: Callable[[], bool],
) -> Path | None:
    """Train until all is done, or until asked to end; says what workers are waited for.

    Args:
        job: the work.
        bank: the actor between the epochs.
        start_from: a checkpoint to go on from.
        share: what a worker reserves.
        asked: whether the run is to end.

    Returns:
        The newest checkpoint that was reported, None where none was.

    Raises:
        UserError: the run failed, or found no room in time.
    """
    board = Board()
    with waiting.said(job.config, share, board) as say:
        trainer = _trainer(job, bank, start_from, share, board)

        def poll() -> None:
            say()
            if asked():
                bank.ask_to_stop.remote()

        try:
            result = ending.beside(trainer.fit, poll)
        except ray.train.TrainingFailedError as error:
            raise for_users(error) from error
    return Path(result.checkpoint.path) if result.checkpoint else None


def _trainer(
    job: Job,
    bank: ActorHandle[BankActor],
    start_from: Path | None,
    share: Mapping[str, float],
    board: Board,
) -> TorchTrainer:
    settings = job.config.trainer
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
            resources_per_worker=dict(share),
        ),
        run_config=ray.train.RunConfig(
            name=job.run_dir.name,
            storage_path=str(job.run_dir.parent),
            failure_config=FailureConfig(max_failures=-1),  # `Retries` counts
            callbacks=[retries, awaited],
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
        ),
    )
