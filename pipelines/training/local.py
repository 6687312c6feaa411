"""A whole run in this process, without Ray: for a machine with one GPU, a notebook, a debugger.

The loop, the plans, the checkpoints, the log and the summary are those of a run on Ray, and a run
directory that either of them began is continued by the other. Threads decode what comes next, and
cluster one modality while the other one is being embedded.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.config import RunConfig
from pipelines.data import gate
from pipelines.data.batches import PlannedLines, columns_of, training_batches
from pipelines.data.decode import DecodeAndAugment
from pipelines.data.inputs import Inputs, find_unreadable
from pipelines.data.prepare import Prepared, prepare
from pipelines.data.sample_list import recall, remember
from pipelines.distributed.collectives import shares
from pipelines.errors import Terminated, UserError
from pipelines.runs import checkpoint, ending, failures, recovery, runlog
from pipelines.runs.epoch_lines import follow
from pipelines.training import deterministic, within_epoch
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.job import Job
from pipelines.training.loop import train as train_alone
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.planner import Planner
from pipelines.training.progress import Progress, is_over
from pipelines.training.summary import finish
from pipelines.training.within_epoch import Order
from reid_core.knn.search import nearest, nearest_on
from reid_core.methods import METHODS
from reid_core.transforms import TrainTransform
from reid_core.types import Batch, Modality

try:
    from pipelines.runs import tensorboard
except ImportError:  # a machine for one benchmark or notebook may lack tensorboardX
    tensorboard = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_MOST_READERS = 16
_CPU = torch.device("cpu")


def train(
    config: RunConfig,
    run_dir: Path,
    command: Sequence[str] = (),
    *,
    device: torch.device | None = None,
    readers: int | None = None,
) -> dict[str, Any]:
    """Train, or go on training, in a run directory; `trainer.num_workers` is not read.

    Args:
        config: the run's configuration.
        run_dir: where everything goes; a directory of the same configuration is continued.
        command: the command line, for the record.
        device: None for a GPU if there is one and `trainer.use_gpu` does not forbid it.
        readers: threads that decode; None for as many as the machine can spare.

    Returns:
        The summary, as written to summary.json.

    Raises:
        UserError: something the user can put right, found before or during training.
        Terminated: a signal asked for an end; the same call goes on from there.
    """
    began = time.perf_counter()
    run_dir = run_dir.resolve()
    device = device or _device(config)
    readers = readers or _readers(device)
    gate.check(config, run_dir)
    with runlog.held(run_dir):
        runlog.claim(run_dir, config, command)
        begun = recall(run_dir)
        prepared = prepare(config, partial(_find_broken, readers=readers), begun=begun)
        if begun is None:
            remember(run_dir, prepared.train)
        started = time.perf_counter()
        attempt = failures.next_attempt(run_dir)
        with follow(run_dir, config), failures.reported(run_dir, rank=0, attempt=attempt):
            progress = fit(config, prepared, run_dir, device=device, readers=readers)
    seconds = {"start": started - began, "train": time.perf_counter() - started}
    return finish(run_dir, config, prepared, progress, seconds)


def fit(
    config: RunConfig, prepared: Prepared, run_dir: Path, *, device: torch.device, readers: int
) -> Progress:
    """The training of `train`, from the newest checkpoint on, of a data set that was checked.

    Args:
        config, run_dir, device, readers: as in `train`.
        prepared: the data set.

    Raises:
        UserError: as `train`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    job = Job.of(config, prepared, run_dir)
    with ThreadPoolExecutor(1, "bank") as pool, ending.gently() as signals:
        bank = BankOfThisProcess(open_bank(job, prepared, device), pool)
        run = deterministic.train if config.trainer.strict else train_alone
        progress = run(
            job,
            bank,
            partial(batches, job, readers=readers),
            partial(_report, run_dir, config.trainer.keep_checkpoints),
            device=device,
            state=within_epoch.load(run_dir, _state(config, run_dir)),
            readers=readers,
            notice=lambda: Order.STOP if signals.asked else Order.NOTHING,
        )
    if signals.asked and not is_over(config, progress):
        raise Terminated(signals.asked)
    return progress


def open_bank(job: Job, prepared: Prepared, device: torch.device = _CPU) -> MemoryBank | Planner:
    """What decides between the epochs, in this process; neighbours are searched on `device`."""
    if not job.needs_memory:
        assert job.identities is not None
        return Planner(job.config, job.identities)
    inputs = METHODS[job.config.method].inputs
    return MemoryBank(
        job.config,
        prepared.pids(inputs),
        identities=job.identities,
        owners=job.train.owners,
        cameras=prepared.cameras(inputs),
        search=nearest if device.type == "cpu" else partial(nearest_on, device),
    )


class BankOfThisProcess:
    """A bank as the loop asks it: features are handed over at once and clustered by a thread.

    Args:
        bank: the plain class.
        pool: one thread.
    """

    def __init__(self, bank: MemoryBank | Planner, pool: ThreadPoolExecutor) -> None:
        self._bank, self._pool = bank, pool

    def open(self) -> int:
        """See `MemoryBank.open`."""
        return self._bank.open()

    def add_features(
        self, token: int, key: Key, modality: Modality, features: np.ndarray, rank: int, world: int
    ) -> None:
        """See `MemoryBank.add_features`; what goes wrong there is raised by `begin_epoch`."""
        assert isinstance(self._bank, MemoryBank)  # a planner is given no features
        self._pool.submit(self._bank.add_features, token, key, modality, features, rank, world)

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """See `MemoryBank.begin_epoch`.

        Raises:
            UserError: what the bank was given makes no epoch.
        """
        try:
            return self._bank.begin_epoch(token, key, world)
        except ValueError as error:
            raise UserError(str(error)) from error


# What is read ------------------------------------------------------------------------------------


def batches(job: Job, start: EpochStart, *, readers: int = 1) -> Iterator[dict[Modality, Batch]]:
    """All batches of an epoch; `readers` threads decode and augment the next ones."""
    plan, inputs = start.plan, job.train
    views = METHODS[job.config.method].augmentations(
        job.config.settings, job.config.augmentation.options()
    )
    decode = DecodeAndAugment(
        height=inputs.height,
        width=inputs.width,
        transforms={m: [TrainTransform(view) for view in each] for m, each in views.items()},
        max_megapixels=inputs.max_megapixels,
        decoded=inputs.decoded,
    )

    def lines(number: int) -> dict[str, np.ndarray]:
        one = slice(number, number + 1)
        return decode(columns_of(PlannedLines.of(plan, inputs, one, rank=0, world=1).block()))

    _ = plan.replacements  # computed once, before several threads ask for it
    return training_batches(
        _ahead(lines, range(plan.first, plan.num_batches), readers),
        shape=plan.shape,
        rank=0,
        world=1,
        tokens=inputs.tokens,
        first=plan.first,
    )


def _ahead(
    work: Callable[[int], dict[str, np.ndarray]], numbers: range, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """work(number) of each in order, with two more under way than there are threads."""
    pool = ThreadPoolExecutor(threads, "reader")
    waiting: deque[Future[dict[str, np.ndarray]]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(work, number))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _find_broken(inputs: Inputs, modality: Modality, *, readers: int) -> list[tuple[int, str]]:
    """`find_unreadable` over all rows, in threads."""
    rows = np.arange(inputs.num_rows(modality))
    parts = [rows[part] for part in shares(len(rows), readers)]
    with ThreadPoolExecutor(readers) as pool:
        broken = pool.map(partial(find_unreadable, inputs, modality), parts)
        return [row for part in broken for row in part]


# What is kept ------------------------------------------------------------------------------------


def _report(run_dir: Path, keep: int, line: dict[str, Any], state: dict[str, Any] | None) -> None:
    """Keep an epoch's state; the oldest checkpoints go when the new one is whole."""
    assert state is not None
    if tensorboard is not None:
        tensorboard.write(run_dir, line)
    info = {"stage": line["stage"], "epoch": line["epoch"], "written": time.time()}
    folder = run_dir / f"checkpoint_{line['stage']}_{line['epoch']:04d}"
    checkpoint.save(folder, state, info)
    whole = [known for known in run_dir.glob("checkpoint_*") if checkpoint.is_whole(known)]
    whole.sort(key=lambda known: (known / checkpoint.STATE).stat().st_mtime_ns)
    for old in whole[:-keep]:
        shutil.rmtree(old)


def _state(config: RunConfig, run_dir: Path) -> dict[str, Any] | None:
    """What the run goes on from: its newest checkpoint, or the stage it starts from."""
    start_from = checkpoint.finished_stage(config)
    recovery.tidy(run_dir)
    (run_dir / recovery.RECORD).unlink(missing_ok=True)  # Ray's list would not hold ours
    if any(run_dir.glob("checkpoint_*")):
        start_from = checkpoint.find(run_dir)
    return None if start_from is None else checkpoint.load(start_from)


def _device(config: RunConfig) -> torch.device:
    use_gpu = config.trainer.use_gpu
    available = torch.cuda.is_available()
    if use_gpu and not available:
        raise UserError("trainer.use_gpu=true, but torch sees no GPU here")
    return torch.device("cuda" if available and use_gpu is not False else "cpu")


def _readers(device: torch.device) -> int:
    """On the CPU the model takes the cores, and one thread keeps up with it."""
    spare = (os.cpu_count() or 1) - 1
    return max(1, min(spare, _MOST_READERS)) if device.type == "cuda" else 1
