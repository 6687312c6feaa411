"""What each process of the worker group runs: the loop, with Ray's streams and reports."""

from __future__ import annotations

import errno
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint

from pipelines.distributed import collectives
from pipelines.errors import UserError
from pipelines.runs import checkpoint, tensorboard
from pipelines.storage.files import replace_file
from pipelines.training import deterministic, stream
from pipelines.training.actor import BankRefusedError, RemoteBank
from pipelines.training.job import Job
from pipelines.training.loop import train as train_alone

FAILURE = "failure.txt"
"""In the run directory: what the memory bank refused, for the driver to say."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def work(settings: dict[str, Any]) -> None:
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
            replace_file(job.run_dir / FAILURE, str(error))
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
