"""Several runs at a time on one cluster: trials of a data set, seeds, trials of a sweep.

A published batch fills one GPU, so what more GPUs are for first is more runs. Each is a Ray task
that reserves nothing and drives its own bank and workers, as `crossreid train` does. A task that is
lost, with its process or with its machine, is begun again: a run goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ray
from ray import exceptions
from ray.autoscaler.sdk import request_resources

from pipelines.cluster import capacity, nodes
from pipelines.cluster.session import session, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.runs import runlog, warned
from pipelines.runs.console import say
from pipelines.runs.records import Summary

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
Limit = Callable[[int], int]
"""How many of so many runs to have under way; asked at every look."""


def slots(config: RunConfig, *, use_gpu: bool, requested: int) -> int:
    """Runs that can train side by side, settled once: the trials of a sweep.

    They need not wait for each other's resources, but where machines may be added. There all are
    begun: those that wait are what asks for them. Worker groups are placed whole or not at all and
    cannot block each other. What others hold is left out, but for one run, which waits for it and
    says so.

    Args:
        config: of a run.
        use_gpu: whether its workers take GPUs.
        requested: upper limit.

    Raises:
        UserError: not even one run fits.
    """
    if capacity.may_grow(config):
        return requested
    fitting = room(config, use_gpu=use_gpu)
    settings = config.trainer
    workers, bundle = settings.num_workers, capacity.asked_of(config, use_gpu)
    share, wanted = capacity.share_of(config, use_gpu), min(fitting, requested)
    if wanted > 1 and not capacity.soon(lambda: capacity.free_room(share) >= wanted * workers):
        free = max(1, min(wanted, capacity.free_room(share) // workers))
        there = capacity.freely(wanted * workers, share)
        log.warning("%d runs at a time instead of %d: %s", free, requested, there)
        return free
    if fitting >= requested:
        return requested
    there = capacity.compared(workers, bundle)
    if not use_gpu:
        there += "; each run takes one CPU beyond its workers, for images"
    if fitting == 0 and settings.min_workers and _room(settings.min_workers, bundle):
        fitting = 1  # with fewer workers than it asks for
    if fitting == 0:
        raise UserError(
            f"not one run fits: {there}: lower trainer.num_workers or trainer.cpus_per_worker, or "
            "add nodes"
        )
    log.warning("%d runs at a time instead of %d: %s", fitting, requested, there)
    return fitting


def room(config: RunConfig, *, use_gpu: bool) -> int:
    """Runs that the machines hold side by side.

    Images are decoded by tasks that reserve nothing, so a CPU run counts one core beyond its
    workers for them.
    """
    return _room(config.trainer.num_workers, capacity.asked_of(config, use_gpu))


def free_runs(config: RunConfig, *, use_gpu: bool) -> int:
    """Of `room`, as many as what nobody holds; where machines may be added, all."""
    fitting = room(config, use_gpu=use_gpu)
    if capacity.may_grow(config):
        return fitting
    free = capacity.free_room(capacity.share_of(config, use_gpu))
    return min(fitting, free // config.trainer.num_workers)


def _room(workers: int, bundle: Mapping[str, float]) -> int:
    fitting = capacity.room(bundle) // workers
    if "GPU" in bundle:
        return fitting
    return min(fitting, int(nodes.total("CPU") // (workers * bundle["CPU"] + 1)))


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


@contextmanager
def growing(config: RunConfig, *, use_gpu: bool) -> Iterator[Limit]:
    """As many runs as there is room for, at least one, on a cluster to which machines may be added.

    No run begins that would only wait: it would take what another gives back before that one has
    used it for its last steps. So an autoscaler is asked for machines here. Ray keeps a request
    beyond the life of who asked, and with it the machines: it is taken back once there is room, at
    the end of the block, and after `ray.wait_for_nodes_s`.

    Args:
        config: of a run.
        use_gpu: whether its workers take GPUs.
    """
    limit = _Growing(config, use_gpu)
    try:
        yield limit
    finally:
        limit.ask(0)


class _Growing:
    def __init__(self, config: RunConfig, use_gpu: bool) -> None:
        self._config, self._use_gpu = config, use_gpu
        self._until = time.monotonic() + config.ray.wait_for_nodes_s
        self._asked = 0

    def __call__(self, wanted: int) -> int:
        fitting = max(1, room(self._config, use_gpu=self._use_gpu))
        if fitting >= wanted:
            self.ask(0)
            return wanted
        if time.monotonic() < self._until:
            if not self._asked:
                self._say(fitting, wanted, "until machines are added")
            self.ask(wanted)
        elif self._asked:
            limit = f"ray.wait_for_nodes_s={self._config.ray.wait_for_nodes_s:g}"
            self._say(fitting, wanted, f"no more machines are asked for after {limit}")
            self.ask(0)
        return fitting

    def ask(self, runs: int) -> None:
        """Ask for what they need, again at every look: a run's own request takes its place."""
        if runs or self._asked:
            bundle = capacity.asked_of(self._config, self._use_gpu)
            one = [bundle] * self._config.trainer.num_workers
            if not self._use_gpu:
                one = [*one, {"CPU": 1.0}]  # for images
            request_resources(bundles=one * runs)
        self._asked = runs

    def _say(self, fitting: int, wanted: int, why: str) -> None:
        bundle = capacity.asked_of(self._config, self._use_gpu)
        there = capacity.compared(self._config.trainer.num_workers, bundle)
        log.warning("%d runs at a time instead of %d, %s: %s", fitting, wanted, why, there)


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
    shown = {run_dir: len(warned.read(run_dir)) for run_dir in runs}
    while under_way or (left and not errors):
        limit = at_once(len(under_way) + (0 if errors else len(left)))
        while left and not errors and len(under_way) < limit:
            run_dir = left.pop(0)
            say(f"{run_dir.name} begins")
            under_way[run_dir] = Run(runs[run_dir], run_dir, command)
        over, _ = ray.wait([run.task for run in under_way.values()], timeout=_LOOK_S)
        for run_dir in under_way:  # they have no terminal of their own
            lines = warned.read(run_dir)[shown[run_dir] :]
            shown[run_dir] += len(lines)
            for when, text in warned.messages(lines):
                if text not in known:
                    say(f"{run_dir.name}: {when} {text}")
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

    runlog.wait_until_free(run_dir, wait_s)
    summary = train(config, run_dir, command, passed=passed)
    page.write(run_dir)
    return summary


# `Run` begins it again, and says so
_train = ray.remote(num_cpus=0, max_retries=0)(_train_run)
