"""Several runs at a time on one cluster: trials of a data set, seeds, trials of a sweep.

A published batch fills one GPU, so what more GPUs are for first is more runs. Each is a Ray task
that reserves nothing and drives its own bank and workers, as `crossreid train` does. A task that is
lost, with its process or with its machine, is begun again: a run goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import ray
from ray import exceptions

from pipelines.cluster import capacity
from pipelines.cluster.session import session, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.runs import warned
from pipelines.runs.console import say
from pipelines.runs.records import Summary
from pipelines.storage import lock
from pipelines.training.room_for_runs import Limit, growing, slots

log = logging.getLogger(__name__)
_LOOK_S = 5.0  # between two looks at what the runs under way warn of, and at what has room
BEGUN_AGAIN = 3
"""How many times a run is begun again whose task was lost."""
_FREED_WITHIN_S = 120.0  # a lock that a machine took with it; NFS waits 90 s for its holder
_LOST = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,  # Ray ended it for want of memory
    exceptions.ObjectLostError,  # its summary, or the process that asked for it
)


def start(
    config: RunConfig, run_dir: Path, command: Sequence[str], *, wait_s: float = 0.0
) -> ray.ObjectRef[Summary]:
    """Begin, or go on with, a run as a task; the reference of its summary.

    Args:
        config, run_dir, command: see `pipelines.training.driver.train`.
        wait_s: how long another process may still be in its folder before the run is refused.
    """
    options = _train.options(scheduling_strategy="DEFAULT")
    return options.remote(config, run_dir, tuple(command), wait_s)


class Run:
    """A run as a task, and as another one where that is lost, up to `BEGUN_AGAIN` times.

    Args:
        config, run_dir, command: see `pipelines.training.driver.train`.
        held: no other command works in its folder: who is there was begun for it, and is ending.

    Attributes:
        task: the reference of its summary; another one after it was begun again.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path, command: Sequence[str], *, held: bool = False
    ) -> None:
        self._of, self._lost = (config, run_dir, command), 0
        self.task = start(*self._of, wait_s=_FREED_WITHIN_S if held else 0.0)

    def summary(self) -> Summary | None:
        """What its task has returned; None where that was lost and the run is begun again.

        Raises:
            RayError: the run failed, which is not tried again, or was lost once too often.
        """
        try:
            return ray.get(self.task)
        except _LOST as error:
            if isinstance(error, exceptions.RayTaskError):
                raise  # the run's own, which met one of these
            why = said(error)
            if self._lost == BEGUN_AGAIN:
                raise exceptions.RayError(
                    f"lost {1 + self._lost} times, with its process or its machine: {why}"
                ) from error
        self._lost += 1
        log.warning(
            "%s was lost with its process or its machine (%s): it is begun again, %d of %d times, "
            "and goes on from its last checkpoint",
            self._of[1].name,
            why,
            self._lost,
            BEGUN_AGAIN,
        )
        self.task = start(*self._of, wait_s=_FREED_WITHIN_S)
        return None


def said(error: exceptions.RayError) -> str:
    """Why a run is over, in words: those of its own error, or the first of Ray's."""
    if cause := getattr(error, "cause", None):
        return str(cause)
    return next(iter(str(error).splitlines()), type(error).__name__)


def train_on_one_cluster(
    runs: Mapping[Path, RunConfig], command: Sequence[str]
) -> Mapping[Path, Summary]:
    """Train runs that differ in their data, as many at a time as there is room for.

    Args:
        runs: configuration of each run directory.
        command: the command line, for the record.

    Returns:
        The summary of each.

    Raises:
        UserError: found by the gate before Ray starts, or see `train_all`.
    """
    passed = gate.check_all(runs)  # what is wrong with one of them costs no start of Ray
    # The gate is asked again by each run in its task: on its machine, and whenever it is begun.
    known = {record.getMessage() for one in passed.values() for record in one.warnings}
    train_these = partial(train_all, runs, command, known=known)
    config = next(iter(runs.values()))
    with session(config):
        use_gpu = uses_gpu(config)
        if len(runs) > 1 and capacity.may_grow(config):
            with growing(config, use_gpu=use_gpu) as limit:
                return train_these(at_once=limit)
        count = slots(config, use_gpu=use_gpu, requested=len(runs))
        if count > 1:
            return train_these(at_once=lambda wanted: count)
        return {
            path: _train_run(one, path, tuple(command), 0.0, passed[path])
            for path, one in runs.items()
        }


def train_all(
    runs: Mapping[Path, RunConfig],
    command: Sequence[str],
    *,
    at_once: Limit,
    known: Collection[str] = (),
) -> dict[Path, Summary]:
    """Train runs on the connected cluster, some of them at a time.

    Args:
        runs: configuration of each run directory.
        command: the command line, for the record.
        at_once: how many of those that are under way or to begin.
        known: warnings that have been shown already.

    Returns:
        The summary of each.

    Raises:
        UserError: one failed, with its folder. Those under way are trained to their end before,
            and no other begins.
    """
    left, errors = list(runs), list[str]()
    summaries: dict[Path, Summary] = {}
    under_way: dict[Path, Run] = {}
    news = warned.News(known)
    for run_dir in runs:
        news.skip(run_dir)
    while under_way or (left and not errors):
        limit = at_once(len(under_way) + (0 if errors else len(left)))
        while left and not errors and len(under_way) < limit:
            run_dir = left.pop(0)
            say(f"{run_dir.name} begins")
            under_way[run_dir] = Run(runs[run_dir], run_dir, command)
        over, _ = ray.wait([run.task for run in under_way.values()], timeout=_LOOK_S)
        for run_dir in under_way:  # they have no terminal of their own
            for warning in news.of(run_dir):
                say(f"{run_dir.name}: {warning}")
        for run_dir, run in [item for item in under_way.items() if item[1].task in over]:
            try:
                summary = run.summary()
                if summary is None:
                    continue
                summaries[run_dir] = summary
                say(f"{run_dir.name} is trained")
            except exceptions.RayError as error:
                say(f"{run_dir.name} failed")
                errors.append(f"{run_dir.name}: {said(error)}")
            del under_way[run_dir]
    if errors:
        raise UserError("\n".join(errors))
    return summaries


def _train_run(
    config: RunConfig,
    run_dir: Path,
    command: tuple[str, ...],
    wait_s: float,
    passed: gate.Passed | None = None,
) -> Summary:
    from pipelines.report import page
    from pipelines.training.driver import train

    lock.wait_until_free(run_dir, wait_s)
    summary = train(config, run_dir, command, passed=passed)
    page.write(run_dir)
    return summary


# `Run` begins it again, and says so
_train = ray.remote(num_cpus=0, max_retries=0)(_train_run)
