"""What each process of the worker group runs: the loop, with Ray's streams and reports."""

from __future__ import annotations

import logging
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointUploadMode

from pipelines.distributed import collectives
from pipelines.runs import checkpoint, failures, warned
from pipelines.runs.records import EpochLine, State
from pipelines.storage.abandoned import hold, remove_abandoned
from pipelines.training import deterministic, stream, within_epoch
from pipelines.training.actor import BankActor, RemoteBank
from pipelines.training.job import Job
from pipelines.training.within_epoch import Order

log = logging.getLogger(__name__)
_PREFIX = "crossreid-checkpoint-"
_being_copied: dict[Path, int] = {}


def work(settings: dict[str, Any]) -> None:
    """The training function of one worker."""
    job: Job = settings["job"]
    rank = collectives.rank()
    attempt = collectives.broadcast_int(failures.next_attempt(job.run_dir) if rank == 0 else 0)
    node = ray.get_runtime_context().get_node_id()
    reported = failures.reported(job.run_dir, rank=rank, attempt=attempt, node=node)
    with reported, warned.kept(job.run_dir):
        _train(job, settings["bank"], settings["start_from"])


def _train(job: Job, bank: ActorHandle[BankActor], start_from: Path | None) -> None:
    torch.set_num_threads(job.config.trainer.cpus_per_worker)
    _remove_abandoned()
    share = stream.share_of_node(job.config)
    state = within_epoch.load(job.run_dir, _kept(start_from))
    _agree(state)
    deterministic.train(
        job,
        RemoteBank(bank, _gpus_of_workers()),
        partial(stream.batches, job, share, collectives.rank(), collectives.world_size()),
        partial(_report, job.config.trainer.checkpoint_upload),
        device=ray.train.torch.get_device(),
        state=state,
        readers=share.num_tasks,
        notice=_Notice(RemoteBank(bank)),
    )


def _gpus_of_workers() -> dict[str, list[str]]:
    """By node id, those that the processes of this run hold."""
    context = ray.get_runtime_context()
    own = context.get_node_id(), context.get_accelerator_ids().get("GPU", [])
    result: dict[str, list[str]] = {}
    for node, gpus in collectives.of_every_process(own):
        result[node] = sorted({*result.get(node, ()), *gpus})
    return result


class _Notice:
    """What the cluster and the driver ask for, see `within_epoch.Notice`."""

    def __init__(self, bank: RemoteBank) -> None:
        self._bank = bank
        self._known: object = None

    def __call__(self) -> Order:
        """KEEP once for every machine that Ray knows will be taken away."""
        notice = ray.train.get_preemption_info()  # all processes wait for each other here
        if collectives.rank() == 0 and self._bank.is_to_stop():
            return Order.STOP
        if notice is None or notice == self._known:
            return Order.NOTHING
        self._known = notice
        return Order.KEEP


def _agree(state: State | None) -> None:
    """All processes go on from one state.

    Raises:
        RuntimeError: they read different ones.
    """
    place = state and (state["progress"]["stage"], state["progress"]["epoch"])
    within = state and state.get("within")
    places = collectives.of_every_process((place, within and within["batch"]))
    if len(set(places)) > 1:
        raise RuntimeError(
            f"workers would go on from different states {sorted(set(places), key=str)}: the run "
            "directory must be the same one on all machines"
        )


def _kept(start_from: Path | None) -> State | None:
    """The state to go on from; `start_from` is used where Ray has none."""
    reported = ray.train.get_checkpoint()
    if reported is None:
        return (
            None
            if start_from is None
            else checkpoint.load_to_go_on_from(start_from / checkpoint.STATE)
        )
    with reported.as_directory() as folder:
        return checkpoint.load_to_go_on_from(Path(folder) / checkpoint.STATE)


def _report(upload: str, line: EpochLine, state: State | None) -> None:
    if state is None:
        ray.train.report(line)
        return
    folder = _folder_to_copy()
    checkpoint.save(folder, state)
    ray.train.report(
        line,
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode(upload.upper()),
        delete_local_checkpoint_after_upload=True,
    )


def _folder_to_copy() -> Path:
    """A temporary folder that is held until Ray has copied and deleted it."""
    for folder in [folder for folder in _being_copied if not folder.exists()]:
        os.close(_being_copied.pop(folder))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            _being_copied[folder] = hold(folder)
        except (FileNotFoundError, BlockingIOError):
            continue  # another worker of the node has just found it abandoned
        except OSError:
            log.debug("no locks in %s: nothing there is removed either", folder.parent)
        return folder


def _remove_abandoned() -> None:
    """Delete checkpoints of workers of this node that ended before they were copied."""
    for folder in remove_abandoned(Path(tempfile.gettempdir()), f"{_PREFIX}*"):
        log.warning("removed %s, which a worker left that ended before it was copied", folder)
