"""The training of a run in this process, of a data set that was checked: bank, stream and loop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from pipelines.config.run import RunConfig
from pipelines.data.prepare import Prepared
from pipelines.runs import recovery
from pipelines.runs.records import EpochLine, State
from pipelines.training import deterministic, within_epoch
from pipelines.training.bank_in_thread import BankInThread
from pipelines.training.epoch_maker import epoch_maker_of
from pipelines.training.job import Job
from pipelines.training.progress import Progress
from pipelines.training.thread_stream import batches


def fit(
    config: RunConfig,
    prepared: Prepared,
    run_dir: Path,
    *,
    device: torch.device,
    readers: int,
    asked: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train, from the newest checkpoint on.

    Args:
        config, run_dir, device, readers: as in `pipelines.training.local.train`.
        prepared: the data set.
        asked: whether the run is to end at its next step.

    Raises:
        UserError: something the user can put right.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    job = Job.of(config, prepared, run_dir)
    try:
        with ThreadPoolExecutor(1, "bank") as pool:
            bank = BankInThread(epoch_maker_of(job, prepared, device=device)(), pool)
            return deterministic.train(
                job,
                bank,
                partial(batches, job, readers=readers),
                partial(_report, run_dir, config.trainer.keep_checkpoints),
                device=device,
                state=within_epoch.load(run_dir, recovery.start_from(config, run_dir)),
                readers=readers,
                notice=lambda: within_epoch.Order.STOP if asked() else within_epoch.Order.NOTHING,
            )
    finally:
        if job.train.decoded is not None:  # this process goes on, with what it has open
            job.train.decoded.remove()


def _report(run_dir: Path, newest: int, line: EpochLine, state: State | None) -> None:
    """Keep an epoch's state."""
    assert state is not None  # there is one worker, the first
    recovery.keep(run_dir, state, newest=newest)
