"""Several runs at a time on one cluster: trials of a data set, seeds, trials of a sweep.

A published batch fills one GPU, so what more GPUs are for first is more runs. Each is a Ray task
that reserves nothing and drives its own bank and workers, as `crossreid train` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.autoscaler.sdk import request_resources

from pipelines.cluster import capacity, nodes
from pipelines.cluster.session import session, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.runs import warned
from pipelines.runs.console import say
from pipelines.runs.records import Summary

log = logging.getLogger(__name__)
_LOOK_S = 5.0  # between two looks at what the runs under way warn of, and at what has room
Limit = Callable[[int], int]
"""How many of so many runs to have under way; asked at every look."""


def slots(config: RunConfig, *, use_gpu: bool, requested: int) -> int:
    """Runs that can train side by side, settled once: the trials of a sweep.

    They need not wait for each other's resources, but where machines may be added. There all are
    begun: those that wait are what asks for them. Worker groups are placed whole or not at all and
    cannot block each other.

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
    if fitting >= requested:
        return requested
    settings = config.trainer
    workers, bundle = settings.num_workers, capacity.asked_of(config, use_gpu)
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


def _room(workers: int, bundle: Mapping[str, float]) -> int:
    fitting = capacity.room(bundle) // workers
    if "GPU" in bundle:
        return fitting
    return min(fitting, int(nodes.total("CPU") // (workers * bundle["CPU"] + 1)))


def start(config: RunConfig, run_dir: Path, command: Sequence[str]) -> ray.ObjectRef[Summary]:
    """Begin, or go on with, a run as a task; the reference of its summary."""
    return _train.options(scheduling_strategy="DEFAULT").remote(config, run_dir, tuple(command))


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
    run_dir, config = next(iter(runs.items()))
    gate.check(config, run_dir)  # what is wrong with all of them costs no start of Ray
    with session(config):
        use_gpu = uses_gpu(config)
        if len(runs) > 1 and capacity.may_grow(config):
            with growing(config, use_gpu=use_gpu) as limit:
                return train_all(runs, command, at_once=limit)
        count = slots(config, use_gpu=use_gpu, requested=len(runs))
        if count > 1:
            return train_all(runs, command, at_once=lambda wanted: count)
        return {path: _train_run(one, path, tuple(command)) for path, one in runs.items()}


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
    runs: Mapping[Path, RunConfig], command: Sequence[str], *, at_once: Limit
) -> dict[Path, Summary]:
    """Train runs on the connected cluster, some of them at a time.

    Args:
        runs: configuration of each run directory.
        command: the command line, for the record.
        at_once: how many of those that are under way or to begin.

    Returns:
        The summary of each.

    Raises:
        UserError: one failed, with its folder. Those under way are trained to their end before,
            and no other begins.
    """
    left, errors = list(runs), list[str]()
    summaries: dict[Path, Summary] = {}
    under_way: dict[ray.ObjectRef[Summary], Path] = {}
    said = {run_dir: len(warned.read(run_dir)) for run_dir in runs}
    while under_way or (left and not errors):
        limit = at_once(len(under_way) + (0 if errors else len(left)))
        while left and not errors and len(under_way) < limit:
            run_dir = left.pop(0)
            say(f"{run_dir.name} begins")
            under_way[start(runs[run_dir], run_dir, command)] = run_dir
        over, _ = ray.wait(list(under_way), timeout=_LOOK_S)
        for run_dir in under_way.values():  # they have no terminal of their own
            for line in warned.read(run_dir)[said[run_dir] :]:
                said[run_dir] += 1
                say(f"{run_dir.name}: {line}")
        for task in over:
            run_dir = under_way.pop(task)
            try:
                summaries[run_dir] = ray.get(task)
                say(f"{run_dir.name} is trained")
            except ray.exceptions.RayError as error:
                reason = getattr(error, "cause", None) or error
                say(f"{run_dir.name} failed")
                errors.append(f"{run_dir.name}: {reason}")
    if errors:
        raise UserError("\n".join(errors))
    return summaries


def _train_run(config: RunConfig, run_dir: Path, command: tuple[str, ...]) -> Summary:
    from pipelines.report import page
    from pipelines.training.driver import train

    summary = train(config, run_dir, command)
    page.write(run_dir)
    return summary


_train = ray.remote(num_cpus=0, max_retries=0)(_train_run)
