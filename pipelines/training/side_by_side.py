"""Several runs at a time on one cluster: trials of a data set, seeds, trials of a sweep.

A published batch fills one GPU, so what more GPUs are for first is more runs. Each is a Ray task
that reserves nothing and drives its own bank and workers, as `crossreid train` does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from pipelines.cluster import capacity, nodes
from pipelines.cluster.session import session, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.runs import warned
from pipelines.runs.console import say
from pipelines.runs.records import Summary

log = logging.getLogger(__name__)
_LOOK_S = 5.0  # between two looks at what the runs under way warn of


def slots(config: RunConfig, *, use_gpu: bool, requested: int) -> int:
    """Runs that can train side by side without waiting for each other's resources.

    Worker groups are placed whole or not at all and cannot block each other. Where machines may be
    added, all are begun: those that wait are what asks for them.

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
        at_once = slots(config, use_gpu=uses_gpu(config), requested=len(runs))
        if at_once > 1:
            return train_all(runs, command, at_once=at_once)
        return {path: _train_run(one, path, tuple(command)) for path, one in runs.items()}


def train_all(
    runs: Mapping[Path, RunConfig], command: Sequence[str], *, at_once: int
) -> dict[Path, Summary]:
    """Train runs on the connected cluster, some of them at a time.

    Args:
        runs: configuration of each run directory.
        command: the command line, for the record.
        at_once: how many.

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
        while left and not errors and len(under_way) < at_once:
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
